"""Every Python block of the README runs, one after the other, as somebody who pastes them would run them."""

import pathlib
import re

import numpy as np
import pytest

from tests.blocks import blocks, run

README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.filterwarnings("ignore")  # the snippet that shows stock JAX reading outside its input may overflow
def test_python_blocks(capsys):
    assert sum(block.language == "python" for block in blocks(README)) >= 4
    names = run(README)
    assert np.isfinite(names["gradients"]["kernel"]).all()
    assert "jconv is off by 0.0" in capsys.readouterr().out


def test_names_in_tables_exist():
    import jconv

    for name in re.findall(r"`((?:conv|max|min|avg|sum|lp|adaptive|global|unfold|fold)\w*)`", README.read_text()):
        assert hasattr(jconv, name), name
