"""Images whose height is divided too: the step is that of one device, and only halos and sums go between devices."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train import communication, sharding, spatial
from experiments.train import step as steps
from experiments.train.__main__ import main
from experiments.train.models import MODELS, convnext, mobilenet, resnet
from experiments.train.settings import Settings
from tests.experiments.train import small

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
CLASSES, BATCH = 3, 8
RATE = {"learning_rate": 1.0, "warmup": 0.0, "momentum": 0.0, "weight_decay": 0.0}  # a step is the gradient


@pytest.fixture(autouse=True)
def as_users_run_it():
    with jax.numpy_dtype_promotion("standard"):  # optax
        yield


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    """One block a stage: what is compiled is a third."""
    monkeypatch.setattr(resnet, "BLOCKS", 1)
    monkeypatch.setattr(convnext, "BLOCKS", (1,))
    monkeypatch.setattr(convnext, "CHANNELS", (48,))
    monkeypatch.setattr(mobilenet, "STAGES", ((1, 16, 1, 1), (6, 32, 1, 2)))


@pytest.fixture
def smooth(monkeypatch):
    """No kinks: where rounding moves an element over that of a relu, its gradient is another, on one device as on four."""
    monkeypatch.setattr(jax.nn, "relu", jax.nn.softplus)
    monkeypatch.setattr(jax.nn, "relu6", lambda x: 3 + 3 * jnp.tanh(x / 3 - 1))


def stepped(model, size, layout, rules="jconv", **options):
    """(the state after a step, its metrics, the compiled program) of a batch of drawn images."""
    settings = Settings(data="none", out="none", model=model, width=0.25, batch=BATCH, seed=1, **RATE, **options)
    image = (size, size, 3)
    params, state = MODELS[model].init(jax.random.key(0), image, CLASSES, width=settings.width)
    state = steps.init(settings, MODELS[model], params, state, 10)
    divided = spatial.divided(MODELS[model], layout, image, settings.width)
    step = steps.make_step(settings, divided, rules, 10, (0.5,) * 3, (0.2,) * 3, layout)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (BATCH, *image)).astype(np.uint8)
    labels = generator.integers(0, CLASSES, BATCH).astype(np.int32)
    batch = {"images": images, "labels": labels, "mirror": np.arange(BATCH) % 2 == 0}
    state, batch = layout.put_state(state), layout.put_batch(batch)
    compiled = layout.jit(step, state, None).lower(state, batch).compile()
    state, metrics = compiled(state, batch)
    return layout.local(state), jax.tree.map(np.asarray, metrics), compiled


def alike(got, want, scale):
    for path, leaf in jax.tree_util.tree_leaves_with_path(want):
        (ours,) = [each for place, each in jax.tree_util.tree_leaves_with_path(got) if place == path]
        np.testing.assert_allclose(ours, leaf, rtol=scale, atol=scale, err_msg=str(path))


@pytest.mark.parametrize(
    ("model", "size", "groups", "options"),
    [
        ("lenet", 16, 2, {"crop": 2, "flip": "random"}),
        ("lenet", 16, 1, {"accumulate": 2, "rules": "automatic"}),
        ("resnet", 16, 2, {"remat": True}),
        ("resnet", 16, 2, {"accumulate": 2}),
        ("mobilenet", 16, 2, {}),
        ("convnext", 16, 2, {}),
    ],
)
def test_a_step_is_that_of_one_device(smooth, model, size, groups, options):
    """Parameters, statistics and loss to float32 rounding; gradients are added up once a step; nothing is gathered.

    Rounding: 6e-8 of each of sums of 2,048 numbers, which grows as their root: 3e-6 of a number's size.
    """
    layout = sharding.make_layout(4, False, BATCH, options.get("accumulate", 1), spatial=4 // groups)
    state, metrics, program = stepped(model, size, layout, **options)
    want, want_metrics, _ = stepped(model, size, sharding.ONE_DEVICE, **options)
    alike((state.params, state.state, metrics), (want.params, want.state, want_metrics), 1e-5)
    before, _ = MODELS[model].init(jax.random.key(0), (size, size, 3), CLASSES, width=0.25)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, before)
    assert min(jax.tree.leaves(moved)) > 0 and max(jax.tree.leaves(moved)) > 0.1, moved
    found = communication.collectives(program.as_text())
    assert found.keys() == {"all-reduce", "collective-permute"}, found
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(before))
    statistics = options.get("accumulate", 1) * 0.5 * parameters  # and, of lenet, the last map too: of each part
    assert parameters < found["all-reduce"] < parameters + statistics


def test_memory_is_divided():
    """A device keeps a quarter of what the layers keep for the backward pass; the images themselves it has whole."""
    programs = [
        stepped("resnet", 32, layout)[-1]
        for layout in (sharding.ONE_DEVICE, sharding.make_layout(4, False, BATCH, spatial=4))
    ]
    one, four = (program.memory_analysis().temp_size_in_bytes for program in programs)
    assert four < 0.35 * one


def test_fsdp_divides_the_state_among_all_devices():
    layout = sharding.make_layout(4, True, BATCH, spatial=2)
    state, metrics, program = stepped("lenet", 16, layout)
    want, want_metrics, _ = stepped("lenet", 16, sharding.ONE_DEVICE)
    alike((state.params, metrics), (want.params, want_metrics), 2e-5)
    assert "all-gather" in communication.collectives(program.as_text())
    large = np.zeros((2 * sharding.SMALLEST, 3), np.float32)
    assert layout.put_state(large).addressable_shards[0].data.shape == (sharding.SMALLEST // 2, 3)


def test_a_run_on_divided_images(tmp_path):
    """A whole run, evaluated on divided images too, has the losses of one device, which can go on with it."""
    data, one, four = tmp_path / "data" / "images.npz", tmp_path / "one", tmp_path / "four"
    data.parent.mkdir()
    small.write_images(data, train=96, test=20)
    options = {"epochs": 2, "log_every": 1}

    def alike():
        for ours, theirs in zip(small.lines(four), small.lines(one), strict=True):
            assert ours.keys() == theirs.keys()
            for key in {"step", "loss", "test_loss", "test_accuracy"} & theirs.keys():
                assert ours[key] == pytest.approx(theirs[key], rel=1e-3), ours

    small.train(data, one, **options)
    small.train(data, four, **options, devices=4, spatial=2)
    alike()
    shutil.rmtree(four / "checkpoints" / "00000006")  # the last one
    small.train(data, four, **options, devices=1, spatial=1, resume=True)
    alike()


def test_a_loss_that_is_not_finite_names_the_layer(tmp_path, capsys):
    """Looked for in the model on whole images, where each layer's operations stand by themselves."""
    data = tmp_path / "data" / "images.npz"
    data.parent.mkdir()
    small.write_images(data, train=96, test=20)
    with pytest.raises(SystemExit) as stopped:
        small.train(data, tmp_path / "out", devices=2, spatial=2, learning_rate=1e30, warmup=0.0)
    assert stopped.value.code == 1
    assert re.search(r"not finite; layer (jvp\()?(conv|dense)\d", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"model": "airbench", "spatial": 2}, "spatial=2: airbench: its first convolution has no padding"),
        ({"spatial": 3}, "spatial=3: must divide the number of devices, 4"),
        ({"spatial": 0}, "spatial=0: must be at least 1"),
        ({"spatial": 2, "batch": 33}, "batch=33: 2 groups of 2 devices cannot share it evenly"),
        ({"spatial": 4}, "spatial=4: max_pool2d: strides=2 must divide the rows"),
    ],
)
def test_what_cannot_be_divided_is_one_line_and_status_2(options, line, tmp_path, capsys):
    data = tmp_path / "data" / "images.npz"
    data.parent.mkdir()
    small.write_images(data, train=96, test=20, size=12)
    with pytest.raises(SystemExit) as stopped:
        main(small.arguments(data, tmp_path / "out", devices=4, **options))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert line in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out" / "settings.json").exists()
