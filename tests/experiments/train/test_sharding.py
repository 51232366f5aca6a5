"""A run on several devices and in several processes is the run on one: the same losses, from sums over all devices."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.train import loop, sharding
from experiments.train.models import MODELS, layers
from experiments.train.settings import Settings
from jconv.algorithms import choose

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
IMAGE, CLASSES = (8, 8, 3), 3


def elements(compiled: str, kind: str) -> int:
    """Elements that all collectives of a kind give, added up."""
    found = re.findall(rf"= (.*?) {kind}(?:-start)?\(", compiled)
    return sum(
        math.prod(int(n) for n in dims.split(",") if n) for each in found for dims in re.findall(r"\[(.*?)\]", each)
    )


def compiled_step(model: str, *, fsdp: bool = False, accumulate: int = 1) -> tuple[Any, str, loop.steps.State]:
    """(layout, the compiled step, the state before it) of a model on four devices."""
    settings = Settings(data="none", out="none", model=model, width=0.5, batch=16, accumulate=accumulate)
    layout = sharding.make_layout(4, fsdp, settings.batch, accumulate)
    params, state = MODELS[model].init(jax.random.key(0), IMAGE, CLASSES, width=settings.width)
    state = loop.steps.init(settings, MODELS[model], params, state, 10)
    step = loop.steps.make_step(settings, MODELS[model], "jconv", 10, (0.5,) * 3, (0.2,) * 3, layout)
    batch = {"images": np.zeros((16, *IMAGE), np.uint8), "labels": np.zeros(16, np.int32), "mirror": np.zeros(16, bool)}
    state = layout.put_state(state)
    with jax.numpy_dtype_promotion("standard"):  # optax
        lowered = layout.jit(step, state, None, donate_argnums=0).lower(state, layout.put_batch(batch))
    return layout, str(lowered.compile().as_text()), state


def test_gradients_are_added_up_over_the_devices_once_a_step():
    """As many elements as parameters, and the two sums of the loss; nothing is gathered, nothing sent twice."""
    _, compiled, state = compiled_step("lenet")
    parameters = sum(each.size for each in jax.tree.leaves(state.params))
    assert parameters <= elements(compiled, "all-reduce") <= parameters + 4
    assert not elements(compiled, "(?:all-gather|all-to-all|collective-permute|reduce-scatter)")


def test_parts_of_a_batch_are_shared_by_the_devices():
    """With accumulation too: gradients are added up over the devices once, not once a part; nothing is gathered."""
    _, compiled, state = compiled_step("lenet", accumulate=2)
    parameters = sum(each.size for each in jax.tree.leaves(state.params))
    entry = compiled[compiled.index("\nENTRY ") :].split("\n}\n")[0]  # the loop over the parts is not in it
    assert "while(" in entry
    assert parameters <= elements(entry, "all-reduce") == elements(compiled, "all-reduce") <= parameters + 4
    assert not elements(compiled, "(?:all-gather|all-to-all|collective-permute|reduce-scatter)")


@pytest.mark.parametrize("rules", ["jconv", "automatic"])
@pytest.mark.parametrize(("model", "fsdp"), [("resnet", False), ("airbench", True)])
def test_accumulated_gradients_of_devices_are_those_of_one(model, fsdp, rules, monkeypatch):
    """Normalisation over all devices' images of a part, its statistics, loss and gradients; summed once.

    A device's part of a batch may be computed by another algorithm than the whole, with another rounding; and where two
    elements of a pooling window are as near as that, another of them wins. So the network with max pooling is computed
    by lax's convolution on both sides, on images without such a pair; the statistics' sums alone, which devices add up
    in another order, make a winner change in four of six draws.
    """
    if model == "airbench":
        jax.clear_caches()
        monkeypatch.setattr(choose, "TABLE", tuple(row for row in choose.TABLE if row.name == "lax"))
    shape = (16, 16, 3)
    settings = Settings(data="none", out="none", model=model, width=0.25, batch=16, accumulate=2)
    layout = sharding.make_layout(4, fsdp, settings.batch, 2)
    params, state = MODELS[model].init(jax.random.key(0), shape, CLASSES, width=settings.width)
    rng = np.random.default_rng(5)
    images = rng.standard_normal((16, *shape)).astype(np.float32) + np.arange(16)[:, None, None, None] / 8
    labels = rng.integers(0, CLASSES, 16).astype(np.int32)
    want = jax.jit(loop.steps.make_gradients(settings, MODELS[model], "jconv"))(params, state, images, labels)
    ours = loop.steps.make_gradients(settings, MODELS[model], rules, layout)
    whole = lambda params, *rest: ours(layout.gathered(params), *rest)
    placed = layout.put_state(params), layout.put_state(state), layout.put_batch(images), layout.put_batch(labels)
    got = jax.jit(whole)(*placed)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * (1e-3 + float(jnp.abs(b).max())))
    jax.clear_caches()


def test_fsdp_divides_the_state_and_gathers_what_the_step_uses():
    layout, compiled, state = compiled_step("lenet", fsdp=True)
    large = [each for each in jax.tree.leaves(state.params) if each.size >= sharding.SMALLEST]
    assert large
    for each in large:
        assert each.addressable_shards[0].data.size == each.size // 4
    assert elements(compiled, "all-gather") >= sum(each.size for each in large)
    whole = layout.local(state)
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.sharding.num_devices == 1


def test_batch_normalisation_is_over_the_whole_batch():
    """Each device holds images of another brightness; the statistics are those of all of them."""
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Auto,))
    x = np.random.default_rng(0).standard_normal((8, 3, 3, 2)).astype(np.float32)
    x += np.repeat(np.arange(4), 2)[:, None, None, None]
    norm = lambda x: layers.batch_norm(layers.norm_init(2), layers.batch_norm_state(2), x, train=True, axis_name=None)
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("devices")))
    y, state = jax.jit(norm)(split)
    want, want_state = norm(jnp.asarray(x))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state["mean"], want_state["mean"], rtol=1e-5)
    np.testing.assert_allclose(state["var"], want_state["var"], rtol=1e-5)
    assert elements(str(jax.jit(norm).lower(split).compile().as_text()), "all-reduce") == 2 * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": 99}, r"devices=99: there are only \d+"),
        ({"devices": 3}, "batch=16: 3 devices cannot share it evenly$"),
        ({"devices": 4, "accumulate": 8}, "batch=16: 4 devices cannot share it evenly in 8 parts"),
    ],
)
def test_what_devices_cannot_share(arguments, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_layout(**{"fsdp": False, "batch": 16, **arguments})


# Whole runs, in processes of their own.


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """96 training images of three classes, told apart by their colour."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, 112).astype(np.int32)
    images = generator.integers(0, 60, (112, *IMAGE)).astype(np.uint8)
    images[np.arange(112), :, :, labels] += 120
    path = tmp_path_factory.mktemp("data") / "images.npz"
    parts = {"x_train": images[:96], "y_train": labels[:96], "x_test": images[96:], "y_test": labels[96:]}
    np.savez(path, **parts)  # pyright: ignore[reportArgumentType]
    return path


running: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def none_is_left():
    yield
    while running:
        running.pop().kill()


def started(images, out, devices, *options) -> subprocess.Popen:
    settings = {"data": images, "cache": images.parent, "model": "lenet", "batch": 16, "log-every": 1, "out": out}
    flags = [each for name, value in settings.items() for each in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "experiments.train", *flags, *map(str, options)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": str(devices)}
    pipe = subprocess.PIPE
    running.append(subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe))
    return running[-1]


def ended(process: subprocess.Popen) -> types.SimpleNamespace:
    output, errors = process.communicate(timeout=300)
    return types.SimpleNamespace(status=process.returncode, output=output, errors=errors)


def losses(out) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = [(each["step"], each["loss"]) for each in lines if "accuracy" in each]
    assert [step for step, _ in found] == sorted({step for step, _ in found})
    return [loss for _, loss in found]


def pair(images, out, *options) -> list[subprocess.Popen]:
    """Two processes of four devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = ("--distributed", "--coordinator", address, "--processes", 2, "--process")
    return [started(images, out, 4, *options, *together, number) for number in range(2)]


def test_two_processes_train_as_one(images, tmp_path):
    """The losses of 2 processes of 4 devices, of one of 8 and of one device are the same, to float32 rounding."""
    several = [
        *pair(images, tmp_path / "two", "--epochs", 2),
        started(images, tmp_path / "eight", 8, "--epochs", 2, "--devices", 0, "--fsdp"),
        started(images, tmp_path / "parts", 8, "--epochs", 2, "--devices", 0, "--accumulate", 2),
        started(images, tmp_path / "one", 1, "--epochs", 2),
    ]
    for each in map(ended, several):
        assert each.status == 0, each.errors
    want = losses(tmp_path / "one")
    assert len(want) == 12
    for name in ("eight", "two", "parts"):
        np.testing.assert_allclose(losses(tmp_path / name), want, rtol=1e-3, atol=1e-5)


def test_two_processes_share_the_rows_of_images_too(images, tmp_path):
    """Groups of two devices share the height of their images, four groups in two processes the batch."""
    processes = [*pair(images, tmp_path / "rows", "--spatial", 2, "--epochs", 2)]
    processes.append(started(images, tmp_path / "one", 1, "--epochs", 2))
    for each in map(ended, processes):
        assert each.status == 0, each.errors
    np.testing.assert_allclose(losses(tmp_path / "rows"), losses(tmp_path / "one"), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("inside", [True, False])
def test_an_abort_says_that_another_process_has_stopped(inside):
    """From C, where no exception tells; afterwards an abort is one again."""
    code = f"""
import ctypes, jax
from experiments.train import sharding
jax.process_count = lambda: 2
with sharding._said_on_abort():
    if {inside}:
        ctypes.CDLL(None).abort()
ctypes.CDLL(None).abort()
"""
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=300)
    assert found.returncode == (1 if inside else -signal.SIGABRT)
    assert ("another process has stopped; --resume goes on" in found.stderr) == inside


def test_a_process_that_dies_stops_the_others_and_the_run_goes_on_with_other_devices(images, tmp_path):
    out = tmp_path / "run"
    leader, other = pair(images, out, "--epochs", 4000, "--checkpoint-every", 3)
    while not (out / "checkpoints" / "00000003").exists():
        assert leader.poll() is None, ended(leader).errors
        time.sleep(0.1)
    other.kill()
    other.communicate()
    lost = ended(leader)
    assert lost.status == 1
    assert "train: process 0 of 2: another process has stopped" in lost.errors
    assert "--resume goes on from the last checkpoint, with any number of devices" in lost.errors
    done = max(int(each.name) for each in (out / "checkpoints").iterdir() if each.name.isdigit())
    before = len(losses(out))
    going = started(images, out, 2, "--resume", "--devices", 2, "--epochs", 4000)
    while len(losses(out)) <= before:
        assert going.poll() is None, ended(going).errors
        time.sleep(0.1)
    going.terminate()  # it saves and ends well
    last = ended(going)
    assert last.status == 0, last.errors
    assert f"going on from step {done}" in last.output
