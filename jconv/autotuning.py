"""autotune: what each product of a function costs by every algorithm that can compute it, on this machine.

The products are found by lowering the function: each asks for its algorithm then, with the shapes that jit, grad, vmap,
scan, remat and shard_map have left it. So what is measured is what will be looked up. Each is timed alone, under jit,
its algorithms in turn, on random operands. What is hopeless is left before it costs much, and the table says why:
    a lax convolution over many inserted zeros          before it is compiled, on a CPU
    too large a program, or too many temporary bytes    before it runs
    a first run of 3 times the fastest so far           after that run
"""

import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jconv import _jax, measured, products
from jconv.algorithms import choose
from jconv.comparison import cost
from jconv.measured import Product
from jconv.products import How
from jconv.tuning import Entry, Tuning, nothing_here, to_choose

NOISE = 0.05  # two runs of one program differ by this share for no reason
HOPELESS = 3.0  # times the fastest so far, in its first run
AGAIN_SECONDS = 0.1  # a first run below this pays for more than itself: it is run twice
# Zeros inserted around an element of a dilated input, from which lax is not even tried on a CPU: the input gradient of
# patches of 2 x 4 x 4 in a video of 32 x 224 x 224, with 31 zeros, takes it minutes, and "spread" 30 ms.
MOST_ZEROS = 7
MOST_LINES = 20_000  # of a lowered program: more take XLA minutes
MOST_TEMPORARIES = 1 << 30  # bytes, beside 4 times the operands and the result
PRIMITIVES = {
    "forward": products.convolve_p,
    "kernel_grad": products.kernel_grad_p,
    "input_grad": products.input_grad_p,
}
Progress = Callable[[int, int, str], None]


def autotune(
    fun: Callable[..., Any],
    *args: Any,
    repeats: int = 10,
    seconds: float = 60.0,
    file: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Tuning:
    """Times the algorithms of every convolution in fun(*args) on this machine, and keeps the fastest of each product.

    algorithm="auto" chooses from a model of a machine; this asks the machine. fun is only lowered, nothing of it runs.
    Give what the program will run: a training step has kernel and input gradients, a loss alone has none. The result is
    put to use by `with tuning:` or `tuning.use()`; run it where nothing else runs, or noise decides.

    Args:
      fun: a function of arrays and pytrees of them, under jit or not; jax.grad of a loss, a step, a model over jax.lax
        inside of accelerate.
      *args: its arguments; arrays, or jax.ShapeDtypeStruct in their place. Other leaves stay static.
      repeats: how often each algorithm is timed, in turn.
      seconds: after this time no further algorithm is tried for a product.
      file: where to keep the result: products that it knows are not measured again, new ones are added, each as soon as
        it is measured.
      progress: called with (products measured, products in all, the next one's name) before each.

    Returns:
      A Tuning: print it, put it to use, or save it. It has all that `file` has.

    Raises:
      TypeError: fun is no function, or an option is of a wrong type.
      ValueError: fun binds no convolution of jconv, an option is out of range, this is called while jit, grad or vmap
        trace a function, or `file` is damaged or was measured on another machine.
      OSError: `file` cannot be written.

    Example:
      >>> import jconv
      >>> kernel = jax.ShapeDtypeStruct((1, 1, 4, 8), jnp.float32)
      >>> loss = lambda kernel, x: jconv.conv(x, kernel).sum()
      >>> tuning = jconv.autotune(jax.grad(loss), kernel, jnp.ones((2, 8, 8, 4)), repeats=1)
      >>> [entry.problem.product for entry in tuning.entries]
      ['kernel_grad']
    """
    _check(fun, repeats, seconds)
    known = _known(file)
    found = products_of(fun, *args)
    if not found:
        raise ValueError(
            "autotune: fun binds no convolution of jconv whose algorithm is free; of a model over jax.lax give "
            "accelerate(fun)"
        )
    entries = {entry.problem: entry for entry in known.entries}
    new = [product for product in found if product not in entries]
    for number, product in enumerate(new):
        if progress is not None:
            progress(number, len(new), f"{product.layer} {product.product}")
        entries[product] = measure(product, found[product], repeats, seconds)
        if file is not None:
            dataclasses.replace(known, entries=tuple(entries.values())).save(file)
    return dataclasses.replace(known, entries=tuple(entries.values()))


def _check(fun: Any, repeats: Any, seconds: Any) -> None:
    if not callable(fun):
        raise TypeError(f"autotune: fun={fun!r} must be a function, got {type(fun).__name__}")
    if isinstance(repeats, bool) or not isinstance(repeats, int):
        raise TypeError(f"autotune: repeats={repeats!r} must be an integer, got {type(repeats).__name__}")
    if repeats < 1:
        raise ValueError(f"autotune: repeats={repeats!r} must be at least 1")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"autotune: seconds={seconds!r} must be a number, got {type(seconds).__name__}")
    if not seconds > 0:
        raise ValueError(f"autotune: seconds={seconds!r} must be positive")
    if _jax.inside_a_transformation():
        raise ValueError("autotune: a function is being traced (jit, grad, vmap, accelerate), so nothing can be timed")


def _known(file: Any) -> Tuning:
    """What `file` has already; checked before anything is measured that it is of this machine and can be written."""
    here = nothing_here()
    if file is None:
        return here
    if not isinstance(file, str | os.PathLike):
        raise TypeError(f"autotune: file={file!r} must be a path, got {type(file).__name__}")
    path = pathlib.Path(file)
    if not path.exists():
        path.touch()  # an error now, where it cannot be written, and not when all is measured
        path.unlink()
        return here
    try:
        known = Tuning._read(path)
    except ValueError as error:
        raise ValueError(f"autotune: file: {error}") from None
    if dataclasses.replace(known, entries=()) != here:
        raise ValueError(f"autotune: file={str(file)!r} was measured elsewhere, or with another jax; name another file")
    return known


@dataclasses.dataclass(frozen=True, eq=False)
class _Noting(measured.Choice):
    """A choice that chooses nothing, and keeps what it was asked, with the precision."""

    asked: dict[Product, Any] = dataclasses.field(default_factory=dict)

    def algorithm(self, product: Product, precision: Any) -> str:
        self.asked.setdefault(product, precision)
        return "auto"


def products_of(fun: Callable[..., Any], *args: Any) -> dict[Product, Any]:
    """Every product that the lowered fun(*args) asks an algorithm for, in its order, and its precision."""
    leaves, tree = jax.tree.flatten(args)
    arrays = [i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

    def program(given: list[Any]) -> Any:
        filled = list(leaves)
        for i, leaf in zip(arrays, given, strict=True):
            filled[i] = leaf
        args = jax.tree.unflatten(tree, filled)
        results = fun(*args)
        # Nothing that fun computes may look unused; modules of flax.nnx keep it in the arguments.
        return [leaf for leaf in jax.tree.leaves((results, args)) if isinstance(leaf, jax.Array)]

    noting = _Noting()
    with measured.using(noting):
        jax.jit(program).lower([leaves[i] for i in arrays])
    return noting.asked


def candidates(product: Product) -> tuple[str, list[str]]:
    """(the static choice, the other algorithms that can compute the product as exactly)."""
    problem = to_choose(product)
    static = choose.computing(problem, platform=product.platform)[0].name
    if product.examples and product.platform != "cpu":
        return static, []  # each example is a group of one lax convolution, whatever is asked for
    if product.examples and product.product == "kernel_grad":
        x, g = (jax.ShapeDtypeStruct(shape, product.result) for shape in (product.lhs, product.rhs))
        static = "patches" if choose.few_at_a_time(x, g, product.geometry, x.dtype) else static
    names = [row.name for row in choose.able(problem) if row.name != static]
    if problem.dtype != jnp.float32:  # in which alone its rounding is like lax's; by name a user may still have it
        names = [name for name in names if name != "winograd"]
    return static, names


def measure(product: Product, precision: Any, repeats: int, seconds: float, enough: float = 4.0) -> Entry:
    """The entry of one product: its algorithms timed in turn, all rounds together for `enough` seconds at most."""
    begin = time.perf_counter()
    static, others = candidates(product)
    operands = _draw(product)
    calls: dict[str, Callable[[], Any]] = {}
    first: dict[str, float] = {}
    skipped: dict[str, str] = {}
    texts: set[str] = set()
    for name in (static, *others):
        if name != static and time.perf_counter() - begin > seconds:
            skipped[name] = f"no time was left after {seconds:g} s"
            continue
        try:
            if name == "lax" != static:
                _check_zeros(product)
            lowered = jax.jit(_program(product, precision, name)).lower(*operands)
            compiled = _compiled(lowered, texts, name == static)
            calls[name] = lambda compiled=compiled: jax.block_until_ready(compiled(*operands))
            first[name] = cost.seconds_of(calls[name], 1)
        except _Hopeless as hopeless:
            skipped[name] = str(hopeless)
            continue
        except jax.errors.JaxRuntimeError as error:
            if name == static:
                raise
            skipped[name] = f"it failed: {str(error).splitlines()[0][:80]}"
            continue
        if first[name] < AGAIN_SECONDS:
            first[name] = min(first[name], cost.seconds_of(calls[name], 1))
    fastest = min(first.values())
    for name in [name for name in first if name != static and first[name] > HOPELESS * fastest]:
        skipped[name] = f"{first[name] / fastest:.1f} times the fastest in its first run"
        del calls[name]
    calls = {name: call for name, call in calls.items() if name in first}
    times = cost.interleaved(calls, repeats, enough)
    medians = {name: float(f"{np.median(values):.4g}") for name, values in times.items()}
    best = min(medians, key=lambda name: medians[name])
    noise = max(NOISE, *(cost.spread(times[name]) for name in (static, best)))
    return Entry(product, static, best if medians[best] * (1 + noise) < medians[static] else static, medians, skipped)


class _Hopeless(Exception):
    """Why an algorithm is not run."""


def _program(product: Product, precision: Any, name: str) -> Callable[..., Any]:
    how = How(precision, (name, name, name))
    options = {"geometry": product.geometry, "how": how, "dtype": jnp.dtype(product.result)}
    return lambda lhs, rhs: PRIMITIVES[product.product].bind(lhs, rhs, **options, examples=product.examples)


def _compiled(lowered: Any, texts: set[str], static: bool) -> Any:
    """The program, compiled, unless it can be seen before that or after that to be hopeless."""
    text = lowered.as_text()
    if text in texts:
        raise _Hopeless("its program is that of another")
    texts.add(text)
    if not static:
        lines = text.count("\n")
        if lines > MOST_LINES:
            raise _Hopeless(f"its program has {lines} lines")
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    if not static and memory is not None:
        most = MOST_TEMPORARIES + 4 * (memory.argument_size_in_bytes + memory.output_size_in_bytes)
        if memory.temp_size_in_bytes > most:
            raise _Hopeless(f"it needs {memory.temp_size_in_bytes / 2**30:.1f} GiB of temporaries")
    return compiled


def _check_zeros(product: Product) -> None:
    """Of a lax convolution: XLA multiplies zeros that are inserted into an input as well, and slower."""
    zeros = math.prod(axis.input_dilation for axis in to_choose(product).geometry.axes) - 1
    if product.platform == "cpu" and zeros >= MOST_ZEROS:
        raise _Hopeless(f"it multiplies {zeros} zeros an element")


def _draw(product: Product) -> tuple[Any, Any]:
    """Random operands: normal numbers, or small integers."""
    rng = np.random.default_rng(0)
    drawn = []
    for shape, name in zip((product.lhs, product.rhs), product.operands, strict=True):
        dtype = jnp.dtype(name)
        if jnp.issubdtype(dtype, jnp.integer):
            values = rng.integers(0, 4, shape)
        else:
            values = rng.standard_normal(math.prod(shape), np.float32).reshape(shape)
        drawn.append(jax.device_put(values.astype(dtype)))
    return drawn[0], drawn[1]
