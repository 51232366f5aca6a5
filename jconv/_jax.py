"""What jconv needs of JAX that has changed its name between the supported releases, or has no public name.

Everything that is not public stands here, with its reason; the suite on the oldest supported release guards it.
"""

import contextlib
import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.extend.core
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend import linear_util
from jax.interpreters import ad, batching, mlir, partial_eval

from jconv import _sharding

Primitive = jax.extend.core.Primitive
Zero = ad.Zero  # the symbolic zero tangent or cotangent

try:
    jaxprs_in_params = jax.extend.core.jaxprs_in_params
except AttributeError:  # it came there with jax 0.10
    jaxprs_in_params = jax.core.jaxprs_in_params  # pyright: ignore[reportAttributeAccessIssue]


def zero_tangent(primal: Any) -> Any:
    """The symbolic zero tangent of a value."""
    return Zero(jax.typeof(primal).to_tangent_aval())


def varying_axes(x: Any) -> frozenset[str]:
    """The axes of an enclosing shard_map over which x varies; empty outside of one."""
    return _varying(jax.typeof(x))


def _varying(aval: Any) -> frozenset[str]:
    kind = getattr(aval, "manual_axis_type", None)  # jax 0.10; .vma before
    return frozenset((kind.varying if kind is not None else getattr(aval, "vma", None)) or ())


def vary_alike(*arrays: Any) -> tuple[Any, ...]:
    """The arrays, each made to vary over every axis of an enclosing shard_map over which any of them does.

    A product's operands must vary alike. The transpose of this step is the sum over the devices: a kernel that is the
    same on each device gets the sum of their kernel gradients.
    """
    axes = frozenset().union(*(varying_axes(a) for a in arrays if a is not None))
    if not axes:
        return arrays
    return tuple(a if a is None else _vary(a, axes - varying_axes(a)) for a in arrays)


def _vary(x: Any, axes: frozenset[str]) -> Any:
    if not axes:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, tuple(sorted(axes)), to="varying")
    return jax.lax.pvary(x, tuple(sorted(axes)))  # pyright: ignore[reportAttributeAccessIssue]  # before jax 0.9


def _explicit(aval: Any) -> bool:
    sharding = getattr(aval, "sharding", None)
    return sharding is not None and not sharding.mesh.empty


def _broadcasting(rule: Callable[..., Any]) -> Callable[..., Any]:
    """`rule` as it runs by jax's defaults, where a program has set jax_numpy_rank_promotion to "raise" or "warn"."""

    @functools.wraps(rule, updated=())
    def broadcasting(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return rule(*args, **kwargs)

    return broadcasting


@functools.lru_cache(maxsize=4096)
def _outlined(form: Callable[..., Any], avals: tuple[Any, ...]) -> Any:
    with jax.numpy_rank_promotion("allow"):
        return jax.make_jaxpr(form)(*avals).jaxpr.outvars[0].aval


def outline(form: Callable[..., Any], avals: tuple[Any, ...]) -> Any:
    """The abstract value of form(*arrays): shape, dtype, and what shard_map and explicit sharding know about it.

    `form` must be one object for one set of static arguments, since the result is kept by it.
    """
    return _outlined(form, tuple(avals))


def is_sharded(sharding: Any) -> bool:
    """Whether a sharding says anything: jax gives one to gradients where it does not, inside of shard_map to all."""
    if sharding is None:
        return False
    mesh = getattr(sharding, "mesh", None)  # of a NamedSharding
    return mesh is None or jax.sharding.AxisType.Explicit in mesh.axis_types


def summed(aval: Any, axis: int) -> Any:
    """`aval` as a sum over `axis` leaves it: where explicit sharding splits the axis, each device has the whole sum."""
    if not _explicit(aval):
        return aval
    spec = list(aval.sharding.spec)
    spec[axis] = None
    return aval.update(sharding=aval.sharding.update(spec=jax.sharding.PartitionSpec(*spec)))


def abstract(form: Callable[..., Any], avals: tuple[Any, ...], shape: tuple[int, ...], dtype: Any) -> Any:
    """As outline, where shape and dtype are known: `form` is traced only under shard_map or explicit sharding."""
    if any(_varying(a) or _explicit(a) for a in avals):
        return outline(form, avals)
    return jax.core.ShapedArray(shape, dtype)


definitions: dict[Primitive, Callable[..., Any]] = {}  # what computes each primitive of ours: see define


def define(
    primitive: Primitive, lower: Callable[..., Any], *, apart: bool = False, splits: Callable[..., Any] | None = None
) -> None:
    """Let `lower(*arrays, platform=..., **params)`, a function of lax operations, compute the primitive.

    The CPU gets its own lowering, so that an exported or multi-platform program has the right algorithm on each.

    apart: a call of its own on the CPU. XLA would else fuse its last steps into each operation that reads the result,
      and compute them as many times.
    splits: splits(*operands, **params), the axes along which CPU devices can divide the work: see _sharding.Split.
    """
    definitions[primitive] = lower

    @functools.lru_cache(maxsize=4096)
    def compiled(params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
        return jax.jit(functools.partial(primitive.bind, **dict(params)))

    looking = threading.local()  # .closer: jax looks for a NaN's operation in the program that this thread ran

    def impl(*arrays: Any, **params: Any) -> Any:
        if getattr(looking, "closer", False):  # jax before 0.10 binds the product itself once more, without end
            return lower(*arrays, platform=jax.default_backend(), **params)
        looking.closer = True
        try:
            with jax.disable_jit(False):  # a product is compiled even so, as every operation of lax is
                return compiled(tuple(sorted(params.items())))(*arrays)
        finally:
            looking.closer = False

    primitive.def_impl(impl)
    on_cpu = functools.partial(lower, platform="cpu")
    on_cpu = functools.partial(apart_call, on_cpu) if apart else on_cpu
    mlir.register_lowering(primitive, _lowering(primitive, on_cpu, splits), platform="cpu")
    mlir.register_lowering(primitive, _lowering(primitive, functools.partial(lower, platform="other")))


def apart_call(lower: Callable[..., Any], *arrays: Any, **params: Any) -> Any:
    """lower(*arrays, **params) as a function that XLA must not inline."""
    results = jax.jit(functools.partial(lower, **params))(*arrays)
    return set_xla_metadata(results, inlineable="false")


def _lowering(
    primitive: Primitive, lower: Callable[..., Any], splits: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    lower = _broadcasting(lower)
    rule = mlir.lower_fun(lower, primitive.multiple_results)

    def lowering(ctx: Any, *operands: Any, **params: Any) -> Any:
        # Which operands vary over a shard_map's axes was checked when the primitive was bound. A loop in an algorithm
        # would have to say it again of everything that it carries, so algorithms see shapes and dtypes alone.
        avals = [jax.core.ShapedArray(aval.shape, aval.dtype) for aval in ctx.avals_in]
        ctx = ctx.replace(avals_in=avals)
        devices = _devices(ctx.module_context) if splits is not None else ()
        if splits is not None and len(devices) > 1:
            one = functools.partial(lower, **params)
            program = jax.make_jaxpr(one)(*avals)
            if _sharding.has_loop(program.jaxpr):
                context = dataclasses.replace(ctx.module_context.axis_context, device_assignment=devices)
                ctx = ctx.replace(module_context=ctx.module_context.replace(axis_context=context))
                divided = _sharding.divided(one, program.out_avals, splits(*avals, **params))
                return mlir.lower_fun(divided, multiple_results=True)(ctx, *operands)
        return rule(ctx, *operands, **params)

    return lowering


def _devices(module: Any) -> tuple[Any, ...]:
    """As many devices as XLA is to divide a program among, which are all that custom_partitioning asks for.

    None where XLA divides nothing: under shard_map the axis context is of another kind, and an export must not call
    back. Which devices they are is not known here, nor asked: a division is by their number in the mesh.
    """
    count = getattr(module.axis_context, "num_devices", 1)
    if count == 1 or module.lowering_parameters.for_export:
        return ()
    return tuple(jax.devices("cpu")[:count]) if len(jax.devices("cpu")) >= count else ()


def set_jvp(primitive: Primitive, rule: Callable[..., Any]) -> None:
    ad.primitive_jvps[primitive] = _broadcasting(rule)


def set_transpose(primitive: Primitive, rule: Callable[..., Any]) -> None:
    ad.primitive_transposes[primitive] = _broadcasting(rule)


def set_batching(primitive: Primitive, rule: Callable[..., Any]) -> None:
    batching.primitive_batchers[primitive] = _broadcasting(rule)


def is_unknown(x: Any) -> bool:
    """Whether x is the linear argument that a transpose rule is asked about."""
    return ad.is_undefined_primal(x)


# Rewriting: a trace that sees every operation of a function on its way to whatever trace is current. rewriting/walk.py.

Trace: Any = ad.JVPTrace.__base__  # the base class of jvp's, vmap's and jit's traces has no public name

try:
    set_current_trace, take_current_trace = jax.extend.core.set_current_trace, jax.extend.core.take_current_trace
    _under_a_jit = jax.extend.core.unsafe_am_i_under_a_jit_DO_NOT_USE
except AttributeError:  # they got a public name there in jax 0.10
    from jax._src.core import set_current_trace, take_current_trace

    _under_a_jit = jax.core.unsafe_am_i_under_a_jit_DO_NOT_USE  # pyright: ignore[reportAttributeAccessIssue]

# Part of the key of jax.jit's caches. Under a rewriting that is called outside of any transformation, a function that
# jit has compiled before must not run as it was compiled then.
_rewriting = jax.make_user_context(None)


def global_of(context: Any) -> Any:
    """What has set_global and get_global of a jax.make_user_context: itself, or in jax 0.9 what it holds."""
    return context if hasattr(context, "set_global") else context._obj


@contextlib.contextmanager
def tracing(make: Callable[[Any], Any], key: Any) -> Iterator[None]:
    """Let make(parent), a Trace, see what is bound; it passes on what it likes to `parent`, the current trace."""
    with take_current_trace() as parent, contextlib.ExitStack() as stack:
        with take_current_trace() as top:
            pass
        if parent is top:
            stack.enter_context(_rewriting(key))
        stack.enter_context(set_current_trace(make(parent)))
        yield


def inside_a_transformation() -> bool:
    """Whether a trace is current: jit, grad, vmap or a rewriting is running a function."""
    with take_current_trace() as current, take_current_trace() as top:
        return current is not top


def stand_for(trace: Any, parent: Any) -> None:
    """Let libraries that ask where they are (flax.nnx lets a variable be set only there) take `trace` for `parent`."""
    trace._weakref, trace.requires_low = parent._weakref, parent.requires_low


_AVALS_TOO = "avals" in inspect.signature(Primitive.bind_with_trace).parameters  # not in jax 0.8


def bind_in(trace: Any, primitive: Primitive, args: Any, params: dict[str, Any]) -> Any:
    """primitive.bind(*args, **params) as seen by `trace`."""
    if _AVALS_TOO:
        return primitive.bind_with_trace(trace, tuple(args), tuple(map(jax.typeof, args)), dict(params))
    return primitive.bind_with_trace(trace, tuple(args), dict(params))  # pyright: ignore[reportCallIssue]


def bind_functions_in(trace: Any, primitive: Primitive, functions: Any, args: Any, params: dict[str, Any]) -> Any:
    """As bind_in, for primitives that take functions: custom_jvp_call, custom_vjp_call, shard_map, calls."""
    if _AVALS_TOO:
        return primitive.bind_with_trace(trace, tuple(args), None, {"subfuns": tuple(functions), **params})
    return primitive.bind_with_trace(trace, (*functions, *args), dict(params))  # pyright: ignore[reportCallIssue]


@linear_util.transformation2
def _apply(f: Any, wrapper: Any, *args: Any, **kwargs: Any) -> Any:
    return wrapper(f)(*args, **kwargs)


def wrapped(wrapper: Callable[[Any], Any], fun: Any) -> Any:
    """wrapper(fun), also for what the primitives above carry instead of a function."""
    return _apply(fun, wrapper) if isinstance(fun, linear_util.WrappedFun) else wrapper(fun)


def origin(fun: Any) -> tuple[str, str]:
    """(name, file) of the user's function behind a linear_util.WrappedFun; "" where that is not known."""
    info = getattr(fun, "debug_info", None)
    return getattr(info, "func_name", None) or "", getattr(info, "func_filename", None) or ""


def is_awaited(fun: Any) -> bool:
    """Whether a linear_util.WrappedFun tells its caller something as it runs, the structure of its results, say."""
    return any(store is not None for store in getattr(fun, "stores", ()))


def retrace(fun: Callable[..., Any], like: Any) -> tuple[Any, list[Any]]:
    """(jaxpr, constants) of fun, which takes and gives what the jaxpr `like` does: its types, its names."""
    flat = linear_util.wrap_init(fun, debug_info=like.debug_info)
    jaxpr, _, consts = partial_eval.trace_to_jaxpr_dynamic(flat, [v.aval for v in like.invars])
    return jaxpr, list(consts)


def as_weak(x: Any) -> Any:
    """x with a weak type, which jax.lax.convert_element_type gives to no array."""
    return jax.lax.convert_element_type_p.bind(x, new_dtype=x.dtype, weak_type=True, sharding=None)


def abstract_eval(primitive: Primitive, avals: Any, params: dict[str, Any]) -> Any:
    """The abstract value of primitive's result; raises what the primitive raises for wrong operands."""
    return primitive.abstract_eval(*avals, **params)[0]


def plain_jit(params: dict[str, Any]) -> bool:
    """Whether a jit, of which these are the parameters, says nothing but what to compute: no sharding, no donation."""
    said = [*params.get("in_shardings", ()), *params.get("out_shardings", ())]
    layouts = [*params.get("in_layouts", ()), *params.get("out_layouts", ())]
    unsaid = all(type(each).__name__ == "UnspecifiedValue" for each in said) and all(a is None for a in layouts)
    return unsaid and not any(params.get("donated_invars", ())) and not params.get("compiler_options_kvs")


def under_jit(trace: Any) -> bool:
    """Whether what is bound under this trace is recorded, for a program to be compiled, and not computed at once."""
    with set_current_trace(trace):
        return _under_a_jit()


def jit_options(fun: Any) -> dict[str, Any] | None:
    """The options that make jax.jit(fun.__wrapped__, **options) the jitted function that fun is; None if it is none.

    The options of a jitted function have no public name. Without them a jitted function still works under accelerate,
    but runs through Python at each call.
    """
    info = getattr(fun, "_jit_info", None)
    if info is None or not hasattr(fun, "__wrapped__"):
        return None
    try:
        if any(leaf is not None for leaf in (*info.in_layouts_leaves, *info.out_layouts_leaves)):
            return None
        options = {
            "static_argnums": info.static_argnums,
            "static_argnames": info.static_argnames,
            "donate_argnums": info.donate_argnums,
            "donate_argnames": info.donate_argnames,
            "keep_unused": info.keep_unused,
            "inline": info.inline,
            "compiler_options": dict(info.compiler_options_kvs) or None,
        }
        if info.device is not None or info.backend is not None:
            return None
        for side in ("in", "out"):
            leaves = getattr(info, f"{side}_shardings_leaves")
            if any(type(leaf).__name__ != "UnspecifiedValue" for leaf in leaves):
                tree = getattr(info, f"{side}_shardings_treedef")
                options[f"{side}_shardings"] = jax.tree.unflatten(tree, leaves)
    except AttributeError:
        return None
    return options


def rewrite_hijax(params: dict[str, Any], rewrite: Callable[[Any], Any], wrapper: Callable[[Any], Any]) -> Any:
    """The parameters of call_hi_primitive, with what they hold rewritten; None where they hold what we do not know.

    JAX_REMAT3 and JAX_CUSTOM_VJP3 turn jax.checkpoint and jax.custom_vjp into objects of classes that are not public.
    """
    held = params["_prim"]
    if type(held).__name__ == "RematTraced":
        return {**params, "_prim": type(held)(rewrite(held.jaxpr), held.policy)}
    if type(held).__name__ == "CustomVJPTraced":
        dynamic = [a for a in held.in_avals if type(a).__name__ != "Static"]
        traced = jax.jit(wrapper(held.traced)).trace(*dynamic)
        rest = (held.in_avals, held.symbolic_zeros, held.static_argnums, held.opt_remat)
        return {**params, "_prim": type(held)(traced, wrapper(held.fwd), wrapper(held.bwd), *rest)}
    return None


def hijax_rule(params: dict[str, Any]) -> tuple[str, str] | None:
    """(name, file) of the jax.custom_vjp function that call_hi_primitive holds; None if it holds something else."""
    held = params["_prim"]
    if type(held).__name__ != "CustomVJPTraced":
        return None
    info = held.traced.jaxpr.jaxpr.debug_info
    return held.traced.fun_name, getattr(info, "func_filename", None) or ""


def hijax_expand(args: Any, params: dict[str, Any]) -> Any:
    """What call_hi_primitive computes, without its derivative rule."""
    held = params["_prim"]
    return jax.tree.leaves(held.expand(*jax.tree.unflatten(held.in_tree, args)))
