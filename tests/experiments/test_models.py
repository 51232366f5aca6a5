import json
import re

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import jconv
from experiments.models import nets
from experiments.models.__main__ import app, ratios
from tests.rewriting.test_layers import FAST
from tests.test_rewrite import stock_left


@jax.numpy_dtype_promotion("standard")  # Haiku's layers need it
@pytest.mark.parametrize(("name", "library"), nets.rows(nets.TINY))
def test_accelerated_is_stock(name, library):
    """Loss, state and every gradient of a whole model; on a CPU nothing slow is left in the program."""
    net = nets.TINY[name]
    program = nets.program(net, library)
    args = program.params, program.state, *net.draw()
    derive = lambda loss: jax.value_and_grad(loss, has_aux=True)
    lowered = lambda f: jax.jit(f).lower(*args)
    loss = program.loss
    if library == nets.OURS:  # written over jconv: stock is the other
        want = lowered(derive(jconv.automatic(loss))).compile(FAST)(*args)
    else:
        want = lowered(derive(loss)).compile(FAST)(*args)
    for form in (derive(jconv.accelerate(loss)), jconv.accelerate(derive(loss))):
        accelerated = lowered(form)
        for a, b in zip(jax.tree.leaves(accelerated.compile(FAST)(*args)), jax.tree.leaves(want), strict=True):
            # Sums of some thousand terms, through some ten layers of them; biases before BatchNorm have rounding alone.
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        text = accelerated.as_text()
        assert "select_and_scatter" not in text
        assert not re.search(r"(feature|batch)_group_count = (?!1\b)\d+", text)
        assert not stock_left(form, *args)


def test_the_table(tmp_path):
    file = tmp_path / "models.json"
    arguments = ["--tiny", "--models", "lenet linen", "--contestants", "stock,accelerated", "--json", str(file)]
    done = CliRunner().invoke(app, [*arguments, "--repeats", "1"])
    assert done.exit_code == 0, done.output
    (facts,) = json.loads(file.read_text())
    assert facts["parameters"] == nets.program(nets.TINY["lenet"], "linen").size
    assert facts["gradient_difference"] < 1e-4
    assert set(facts["contestants"]) == {"stock", "accelerated"}
    assert set(ratios(facts)) == {"stock"}
    assert "geometric mean" in done.output


@pytest.mark.parametrize("arguments", [["--models", "alexnet"], ["--contestants", "tensorflow"], ["--repeats", "0"]])
def test_wrong_arguments(arguments):
    assert CliRunner().invoke(app, arguments).exit_code == 2
