"""One loop over everything that a function does, which hands each operation to a table. It knows no convolution.

The loop is a trace, as those of jvp and vmap are: while the function runs, every operation that it binds passes here,
is looked up in the table, and goes on, itself or its replacement, to whatever transformation is around. So the function
is run, not recorded: its arguments, closures, side effects and mutable state are its own affair, and there is nothing
to keep between two calls. What is recorded already, the bodies of jit, scan, while, cond, remat, is run again through
the loop, once, and the result kept as long as the body lives. Functions with derivative rules of their own (custom_jvp,
custom_vjp, custom_vmap) keep them, each rule running through the loop in its turn.
"""

import contextlib
import dataclasses
import functools
import pathlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from jconv import _jax
from jconv.rewriting.layouts import Layouts
from jconv.rewriting.report import Note

# The lines that matter are the user's, in reports and in profiles.
source_info_util.register_exclusion(str(pathlib.Path(__file__).resolve().parents[1]))

KERNELS = ("pallas_call",)  # what they hold is a program for one processor, not a function of arrays
CUSTOM_VJP, HIJAX = "custom_vjp_call", "call_hi_primitive"


@dataclasses.dataclass(frozen=True)
class Left:
    """Instead of a replacement: the operation stays as it is, for this reason."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Done:
    """A replacement's result, an array or a list of them as the primitive has it, and what has computed it.

    transposed: of a result that is an array with its axes in another order, that array and the order.
    """

    result: Any
    became: str
    transposed: tuple[Any, tuple[int, ...]] | None = None


Replace = Callable[..., Done | Left]


@dataclasses.dataclass(frozen=True, eq=False)
class Rewriting:
    """A table from primitive to replace(primitive, *operands, **params), which may bind what it likes.

    derives(name, file): whether jax is to derive this custom_vjp function instead of using its rule.
    transposed(array, order): a transpose. Where given, what follows on a replacement that is one is done on what was
    transposed, if it can be: see layouts.py.
    """

    name: str
    table: Mapping[Any, Replace]
    derives: Callable[[str, str], bool] | None = None
    transposed: Callable[[Any, tuple[int, ...]], Any] | None = None
    # What a jaxpr became, None if there was nothing to do, and the notes taken; dropped with the jaxpr.
    known: Any = dataclasses.field(default_factory=weakref.WeakKeyDictionary, repr=False)


@dataclasses.dataclass(frozen=True)
class Under:
    """`fun` as it runs through the loop. Equal for equal functions, so that caches of jax find it again."""

    fun: Any
    rewriting: Rewriting

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with running(self.rewriting):
            return self.fun(*args, **kwargs)


@dataclasses.dataclass(frozen=True, eq=False)
class UnderTree(Under):
    """The same of a callable pytree, as a module of equinox is: a pytree too, so that grad sees the arrays in it."""

    def __eq__(self, other: object) -> bool:  # arrays have no equality, and no hash
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __getattr__(self, name: str) -> Any:
        if name == "fun":  # asked for while this is being made
            raise AttributeError(name)
        return getattr(self.fun, name)


jax.tree_util.register_dataclass(UnderTree, data_fields=["fun"], meta_fields=["rewriting"])


@contextlib.contextmanager
def running(rewriting: Rewriting, notes: list[Note] | None = None) -> Iterator[None]:
    """What is bound in the body of `with` passes through the loop; `notes` collects what happens to it."""
    with _jax.tracing(lambda parent: Walk(parent, rewriting, notes), rewriting.name):
        yield


class Walk(_jax.Trace):
    """The trace. `parent_trace` is where operations go on to."""

    def __init__(self, parent: Any, rewriting: Rewriting, notes: list[Note] | None):
        super().__init__()
        _jax.stand_for(self, parent)
        self.parent_trace, self.rewriting, self.notes = parent, rewriting, notes
        transposed = rewriting.transposed if rewriting.transposed and _jax.under_jit(parent) else None
        self.layouts = Layouts(transposed) if transposed else None

    def process_primitive(self, primitive: Any, operands: Any, params: Any, /) -> Any:
        replace = self.rewriting.table.get(primitive)
        if replace is not None:
            with _jax.set_current_trace(self):
                done = replace(primitive, *operands, **params)
            if isinstance(done, Done):
                self._note(primitive, done.became)
                if self.layouts is not None and done.transposed is not None:
                    self.layouts.keep(done.result, *done.transposed)
                return done.result
            self._note(primitive, None, done.reason)
        elif primitive.name == HIJAX:
            rule = _jax.hijax_rule(params)
            if rule is not None and self._derives(*rule):
                with _jax.set_current_trace(self):
                    return _jax.hijax_expand(operands, params)
            rewritten = _jax.rewrite_hijax(params, self._body, self._under)
            params = params if rewritten is None else rewritten
        elif primitive.name not in KERNELS:
            if self.layouts is not None and (result := self._reordered(primitive, operands, params)) is not None:
                return result
            params = self._bodies(primitive, params)
        return _jax.bind_in(self.parent_trace, primitive, operands, params)

    def _reordered(self, primitive: Any, operands: Any, params: Any) -> Any:
        """The result where it comes of arrays whose transposes the operands are, else None."""
        assert self.layouts is not None
        if primitive.name == "jit":
            run = self.layouts.body(params, operands)
            if run is None:
                return None
            with _jax.set_current_trace(self):
                return list(run(*operands))
        with _jax.set_current_trace(self.parent_trace):
            return self.layouts.computed(primitive, operands, params)

    # Functions that come with rules of their own: the function and its rules run through the loop, wherever that is.

    def process_call(self, primitive: Any, fun: Any, operands: Any, params: Any, /) -> Any:
        return self._pass_on(primitive, (fun,), operands, params)

    process_map = process_call  # pmap, up to jax 0.9

    def process_custom_jvp_call(self, primitive: Any, fun: Any, jvp: Any, operands: Any, /, **params: Any) -> Any:
        call = lambda operands: self._pass_on(primitive, (fun, jvp), operands, params)
        if self.layouts is not None:
            with _jax.set_current_trace(self.parent_trace):
                result = self.layouts.activated(fun, operands, call)
            if result is not None:
                return result
        return call(operands)

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, operands: Any, /, **params: Any
    ) -> Any:
        if self._derives(*_jax.origin(fun)):
            with _jax.set_current_trace(self):
                return fun.call_wrapped(*operands)
        return self._pass_on(primitive, (fun, fwd, bwd), operands, params)

    def process_shard_map(self, primitive: Any, fun: Any, operands: Any, /, **params: Any) -> Any:
        return self._pass_on(primitive, (fun,), operands, params)

    def _pass_on(self, primitive: Any, functions: Any, operands: Any, params: Any) -> Any:
        functions = [_jax.wrapped(self._under, f) for f in functions]
        return _jax.bind_functions_in(self.parent_trace, primitive, functions, operands, params)

    def _derives(self, name: str, file: str) -> bool:
        derives = self.rewriting.derives
        if derives is None or not derives(name, file):
            return False
        if self.notes is not None:
            self.notes.append(Note(f"custom_vjp {name}", "its function, derived by jax", "", _place()))
        return True

    def _under(self, fun: Any) -> Under:
        return Under(fun, self.rewriting)

    # Bodies: the jaxprs among an operation's parameters.

    def _bodies(self, primitive: Any, params: dict[str, Any]) -> dict[str, Any]:
        changed = {}
        for key, value in params.items():
            if _bodies_in(value):
                new = self._body_of(value)
                if new is not value:
                    changed[key] = new
        if primitive.name == "custom_vmap_call":
            changed["rule"] = self._under(params["rule"])
        return {**params, **changed} if changed else params

    def _body_of(self, value: Any) -> Any:
        if isinstance(value, ClosedJaxpr | Jaxpr):
            return self._body(value)
        new = [self._body_of(v) if _bodies_in(v) else v for v in value]
        if all(a is b for a, b in zip(new, value, strict=True)):
            return value
        return type(value)(*new) if hasattr(value, "_fields") else type(value)(new)

    def _body(self, body: Any) -> Any:
        """`body`, closed or not, run through the loop; itself if the table names nothing in it."""
        if body not in self.rewriting.known:
            notes: list[Note] = []
            self.rewriting.known[body] = (_rewritten(body, self.rewriting, notes), notes)
        new, notes = self.rewriting.known[body]
        if self.notes is not None:
            self.notes.extend(notes)
        return body if new is None else new

    # What every trace has.

    def stage_value(self, value: Any) -> Any:
        return self.parent_trace.stage_value(value)

    def cur_qdd(self, value: Any) -> Any:
        return self.parent_trace.cur_qdd(value)

    def _note(self, primitive: Any, became: str | None, reason: str = "") -> None:
        if self.notes is not None:
            self.notes.append(Note(primitive.name, became, reason, _place()))


def _place() -> str:
    return source_info_util.summarize(source_info_util.current())


def _bodies_in(value: Any) -> bool:
    """Whether a parameter is a jaxpr, or a tuple or list that holds some."""
    if isinstance(value, ClosedJaxpr | Jaxpr):
        return True
    return isinstance(value, tuple | list) and any(_bodies_in(v) for v in value)


def _work_in(jaxpr: Any, rewriting: Rewriting) -> bool:
    """Whether running `jaxpr` through the loop may change it. A custom_vjp's own rules are opaque until they run."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if equation.primitive in rewriting.table or name in (CUSTOM_VJP, HIJAX):
            return True
        if name in KERNELS:
            continue
        stack = list(equation.params.values())
        while stack:
            value = stack.pop()
            if isinstance(value, ClosedJaxpr | Jaxpr):
                if _work_in(value, rewriting):
                    return True
            elif isinstance(value, tuple | list):
                stack.extend(value)
    return False


def _rewritten(body: Any, rewriting: Rewriting, notes: list[Note]) -> Any:
    """What `body` becomes, None if that is itself."""
    if not _work_in(body, rewriting):
        return None
    closed = body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ())
    run = jaxpr_as_fun(closed)

    def again(*operands: Any) -> Any:
        with running(rewriting, notes):
            return run(*operands)

    jaxpr, consts = _jax.retrace(again, closed.jaxpr)
    if isinstance(body, ClosedJaxpr):
        return ClosedJaxpr(jaxpr, consts)
    return None if consts else jaxpr  # an open body has no place for constants


def apply(rewriting: Rewriting, fun: Callable[..., Any]) -> Callable[..., Any]:
    """fun, with everything it does run through the loop. A jitted function gives a jitted one, a pytree a pytree."""
    options = _jax.jit_options(fun)
    if options is None and not jax.tree_util.all_leaves([fun]):
        return UnderTree(fun, rewriting)
    inner = fun if options is None else fun.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]

    @functools.wraps(inner, updated=())
    def rewritten(*args: Any, **kwargs: Any) -> Any:
        with running(rewriting):
            return inner(*args, **kwargs)

    return rewritten if options is None else jax.jit(rewritten, **options)
