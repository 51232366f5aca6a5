"""A Tuning: which algorithm was measured to be the fastest for each product, kept in a file, and put to use.

The file is JSON, an entry a line. What an entry is about stands in its "problem": shapes of the two operands, dtypes,
and of each spatial axis the seven integers of geometry.py. A product is looked up by all of it, so another batch size
is another problem, and for a problem that was not measured the static choice of algorithms/choose.py stands.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jconv import _jax, measured
from jconv.algorithms import choose
from jconv.algorithms.views import wide
from jconv.geometry import Axis, Geometry
from jconv.measured import Product

FORMAT, VERSION = "jconv tuning", 1
CLOSE = 1.15  # times the fastest: a static choice within this has nothing to be ashamed of
WIDTH = 100  # columns of a table
AXIS = tuple(field.name for field in dataclasses.fields(Axis))
_entered = threading.local()  # the contexts of `with`, the last the innermost


@dataclasses.dataclass(frozen=True)
class Entry:
    """One product: the static choice, the algorithm to use, median seconds by algorithm, and why others have none."""

    problem: Product
    static: str
    best: str  # the static choice, unless another is faster by more than the noise
    seconds: Mapping[str, float]
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Seconds of the static choice over those of the fastest, best or not: 1 where it is the fastest itself."""
        return self.seconds[self.static] / min(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What autotune measured. str() is a table, `entries` are its rows; save and load keep it in a file.

        with tuning:      in the body, in this thread, algorithm="auto" is what was measured
        tuning.use()      from here on, in every thread; tuning.stop() ends it

    Both belong around the program, outside of jit, grad and vmap: a choice is made where a program is lowered, and is a
    part of the key of jax's caches. So a jitted function, the user's own too, that has been compiled without the tuning
    is compiled anew under it, and afterwards runs again as it was compiled first. Of two tunings the inner one counts,
    alone. algorithm="lax", or another name, stays what it is.

    Example:
      >>> import jconv
      >>> x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
      >>> tuning = jconv.autotune(jconv.conv, x, kernel, repeats=1)
      >>> [(entry.problem.product, entry.problem.layer) for entry in tuning.entries]
      [('forward', '1x8x8x4 -> 4 k3')]
      >>> with tuning:
      ...     y = jconv.conv(x, kernel)
    """

    platform: str  # of jax.default_backend()
    device: str
    cores: int
    jax_version: str
    entries: tuple[Entry, ...]

    def __enter__(self) -> "Tuning":
        self._check_here("with tuning")
        context = contextlib.ExitStack()
        context.enter_context(measured.using(self._chosen))
        _entered.stack = [*getattr(_entered, "stack", ()), context]
        return self

    def __exit__(self, *error: Any) -> None:
        _entered.stack.pop().__exit__(*error)

    def use(self) -> None:
        """Let every thread of this process use what was measured, from here on, but in the body of a `with`.

        Raises:
          ValueError: it was measured on another platform than jax's default backend, or this is called while jit, grad
            or vmap trace a function.
        """
        self._check_here("tuning.use()")
        measured.set_for_all(self._chosen)

    def stop(self) -> None:
        """The end of use(): from here on the static choice stands.

        Raises:
          ValueError: this tuning is not the one in use.
        """
        if measured.for_all() is not self._chosen:
            raise ValueError("tuning.stop(): this tuning is not the one that use() has put to use")
        measured.set_for_all(None)

    @property
    def _chosen(self) -> measured.Chosen:
        return measured.chosen(frozenset((entry.problem, entry.best) for entry in self.entries))

    def _check_here(self, what: str) -> None:
        if _jax.inside_a_transformation():
            raise ValueError(
                f"{what}: a function is being traced (jit, grad, vmap, accelerate), and its program is lowered later; "
                "put the tuning to use around that"
            )
        if self.platform != jax.default_backend():
            raise ValueError(
                f"{what}: it was measured on the platform {self.platform!r}, and says nothing of "
                f"{jax.default_backend()!r}, on which jax runs here"
            )

    @property
    def close(self) -> int:
        """How many entries' static choice takes at most 1.15 times as long as the fastest."""
        return sum(entry.ratio <= CLOSE for entry in self.entries)

    def __str__(self) -> str:
        faster = sum(entry.best != entry.static for entry in self.entries)
        name = max([8, *(len(n) for e in self.entries for n in (e.static, e.best))])  # columns
        wide = 60 - 2 * name  # what is left of 100
        lines = [
            f"{len(self.entries)} products on {self.platform} ({self.cores} cores), jax {self.jax_version}: "
            f"{faster} by another algorithm",
            f"than the static choice, which is within {CLOSE - 1:.0%} of the fastest for {self.close}",
            f"{'layer':<{wide}} {'product':<11} {'static':<{name}} {'ms':>8}  {'best':<{name}} {'ms':>8} {'ratio':>6}",
        ]
        for e in self.entries:
            layer = e.problem.layer if len(e.problem.layer) <= wide else e.problem.layer[: wide - 3] + "..."
            times = [f"{1e3 * e.seconds[which]:>8.4g}" for which in (e.static, e.best)]
            ratio = e.seconds[e.static] / e.seconds[e.best]
            lines.append(
                f"{layer:<{wide}} {e.problem.product:<11} {e.static:<{name}} {times[0]}  "
                f"{e.best:<{name}} {times[1]} {ratio:>6.2f}"
            )
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that load reads, at once or not at all.

        Raises:
          OSError: it cannot be written.
        """
        path = pathlib.Path(path)
        head = {"format": FORMAT, "version": VERSION} | {name: getattr(self, name) for name in HEAD}
        lines = [f"  {json.dumps(_written(entry))}" for entry in self.entries]
        text = json.dumps(head, indent=1)[:-2] + ',\n "entries": [\n' + ",\n".join(lines) + "\n ]\n}\n"
        beside = path.with_name(f"{path.name}.{os.getpid()}.part")
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tuning":
        """Reads what save wrote; a warning tells where jax, the device or the number of cores were others then.

        Raises:
          OSError: there is no such file, or it cannot be read.
          ValueError: it is no tuning of this version, or damaged; the message names the file, the place, what is wrong.
        """
        tuning = cls._read(path)
        then, here = ({name: getattr(t, name) for name in HEAD} for t in (tuning, nothing_here()))
        if then != here:
            differ = ", ".join(
                f"{name} {then[name]!r}, here {here[name]!r}" for name in HEAD if then[name] != here[name]
            )
            warnings.warn(
                f"{path}: measured elsewhere ({differ}); what was fastest there may not be here", stacklevel=2
            )
        return tuning

    @classmethod
    def _read(cls, path: str | os.PathLike[str]) -> "Tuning":
        try:
            data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError too
            raise ValueError(f"{path}: it is no JSON, {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f'{path}: it is not what Tuning.save writes: "format" must be {FORMAT!r}')
        if data.get("version") != VERSION:
            raise ValueError(f"{path}: its version is {data.get('version')!r}, and {VERSION} is read; measure again")
        try:
            head = [_typed(data, name, kind) for name, kind in HEAD.items()]
            entries = _typed(data, "entries", list)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        found = []
        for number, entry in enumerate(entries):
            try:
                found.append(_entry(entry, "cpu" if data["platform"] == "cpu" else "other"))
            except ValueError as error:
                raise ValueError(f"{path}: entry {number}: {error}") from None
        if len({entry.problem for entry in found}) < len(found):
            raise ValueError(f"{path}: two entries are about the same problem")
        return cls(head[0], head[1], head[2], head[3], tuple(found))


HEAD = {"platform": str, "device": str, "cores": int, "jax_version": str}


def nothing_here() -> Tuning:
    """A Tuning of this machine, without entries."""
    return Tuning(jax.default_backend(), jax.devices()[0].device_kind, os.cpu_count() or 1, jax.__version__, ())


def to_choose(product: Product) -> choose.Problem:
    """The problem as choose.py knows it, one of several examples by itself."""
    with jax.numpy_dtype_promotion("standard"):
        operand = jnp.promote_types(*product.operands)
        inexact = jnp.issubdtype(product.result, jnp.inexact)
        dtype = jnp.promote_types(operand, product.result) if inexact else jnp.dtype(product.result)
    sizes = {"batch": product.batch, "channels": product.channels, "out": product.out}
    return choose.product_problem(product.product, product.geometry, **sizes, dtype=wide(dtype))


def _written(entry: Entry) -> dict[str, Any]:
    p = entry.problem
    problem = {name: getattr(p, name) for name in ("lhs", "rhs", "operands", "result", "examples", "precision")}
    problem |= {"groups": p.geometry.groups, "axes": [dataclasses.asdict(axis) for axis in p.geometry.axes]}
    return {
        "layer": p.layer,
        "product": p.product,
        "static": entry.static,
        "best": entry.best,
        "seconds": dict(entry.seconds),
        "skipped": dict(entry.skipped),
        "problem": problem,
    }


def _typed(data: Any, name: str, kind: type) -> Any:
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name!r} must be of type {kind.__name__}, got {json.dumps(value)[:60]}")
    return value


def _integers(data: Any, name: str) -> tuple[int, ...]:
    values = _typed(data, name, list)
    if not all(type(value) is int and value > 0 for value in values):
        raise ValueError(f"{name!r} must be positive integers, got {json.dumps(values)[:60]}")
    return tuple(values)


def _entry(data: Any, platform: str) -> Entry:
    """An entry of the file, checked: what it names can compute what it is about."""
    given, product = _typed(data, "problem", dict), _typed(data, "product", str)
    if product not in choose.PRODUCTS:
        raise ValueError(f"'product' must be one of {', '.join(choose.PRODUCTS)}, got {product!r}")
    axes = [Axis(*(_typed(axis, name, int) for name in AXIS)) for axis in _typed(given, "axes", list)]
    operands = _typed(given, "operands", list)
    if len(operands) != 2 or not all(isinstance(dtype, str) for dtype in operands):
        raise ValueError(f"'operands' must be two dtypes, got {json.dumps(operands)[:60]}")
    problem = Product(
        product,
        _integers(given, "lhs"),
        _integers(given, "rhs"),
        (operands[0], operands[1]),
        _typed(given, "result", str),
        Geometry(tuple(axes), _typed(given, "groups", int)),
        _typed(given, "examples", bool),
        _typed(given, "precision", str),
        platform,
    )
    seconds, skipped = _typed(data, "seconds", dict), _typed(data, "skipped", dict)
    if not all(isinstance(value, int | float) and value > 0 for value in seconds.values()):
        raise ValueError(f"'seconds' must be positive numbers, got {json.dumps(seconds)[:60]}")
    rank = len(axes) + 2 + problem.examples
    if not axes or len(problem.lhs) != rank or (len(problem.rhs) != rank):
        raise ValueError(f"'lhs' and 'rhs' must have {rank} axes for {len(axes)} of 'axes'")
    for dtype in (*problem.operands, problem.result):
        try:
            jnp.dtype(dtype)
        except TypeError:
            raise ValueError(f"'operands' and 'result' must be dtypes, got {dtype!r}") from None
    try:
        able = [row.name for row in choose.able(to_choose(problem))]
    except ZeroDivisionError as error:  # no groups, no stride
        raise ValueError(f"'problem' is none: {error}") from None
    for name in ("static", "best"):
        value = _typed(data, name, str)
        if value not in able or value not in seconds:
            raise ValueError(
                f"{name!r} must be an algorithm with 'seconds' that applies ({', '.join(able)}), got {value!r}"
            )
    return Entry(problem, data["static"], data["best"], seconds, skipped)
