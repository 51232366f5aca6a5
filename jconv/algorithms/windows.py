"""Moving data for the algorithms: crop, pad, the input under one tap, the turned kernel."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from jconv.geometry import Axis, Geometry, dilated

MAPPED = 32 << 20  # bytes beyond which every array is mapped anew by the system: another one is worth avoiding
SMALL_SUM = 1 << 18  # bytes
MOST_PARTS = 16  # that a kernel gradient is summed up in,
PART_FLOPS = 25e6  # none smaller than this: a step of a loop has its price;
PART_FLOPS_OF_VOLUME = 3e6  # lax adds up a kernel gradient of three axes the more exactly
EXAMPLES_BYTES = 4 << 20  # copies of examples whose kernel gradients are one batched product
CHAINS = 4  # sums side by side: see total

# Where a start is never negative: what jax does for others is a program more to compile for each, or stands in the loop
# that reads the slice and keeps it from being a vector.
take = functools.partial(lax.dynamic_slice, allow_negative_indices=False)
take_along = functools.partial(lax.dynamic_slice_in_dim, allow_negative_indices=False)
take_one = functools.partial(lax.dynamic_index_in_dim, keepdims=False, allow_negative_indices=False)
put = functools.partial(lax.dynamic_update_slice, allow_negative_indices=False)
put_along = functools.partial(lax.dynamic_update_slice_in_dim, allow_negative_indices=False)


def crop(x: jax.Array, geometry: Geometry) -> tuple[jax.Array, Geometry]:
    """x without the elements that no window touches, and the geometry whose pads are then never negative.

    XLA:CPU reads outside x where low < 0 < high (openxla/xla#48713), so every product crops before lax is called.
    """
    cuts = [axis.crop() for axis in geometry.axes]
    if any(left or right for left, right, _ in cuts):
        starts = (0, *(left for left, _, _ in cuts), 0)
        stops = (x.shape[0], *(n - right for n, (_, right, _) in zip(geometry.input, cuts, strict=True)), x.shape[-1])
        x = lax.slice(x, starts, stops)
    return x, cropped(geometry)


def cropped(geometry: Geometry) -> Geometry:
    """The geometry that crop gives."""
    return dataclasses.replace(geometry, axes=tuple(axis.crop()[2].plain() for axis in geometry.axes))


def pad(x: jax.Array, geometry: Geometry, value: float | int = 0) -> jax.Array:
    """x (batch, *input, channels) with `value` around it and between its dilated elements, as the windows see it."""
    widths = [(axis.low, axis.high, axis.input_dilation - 1) for axis in geometry.axes]
    if not any(map(any, widths)):
        return x
    return lax.pad(x, jnp.array(value, x.dtype), ((0, 0, 0), *widths, (0, 0, 0)))


def pad_axis(x: jax.Array, dim: int, low: int, high: int) -> jax.Array:
    """x with so many zeros before and after it along one axis."""
    if low == high == 0:
        return x
    widths = [(0, 0, 0)] * x.ndim
    widths[dim] = (low, high, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), widths)


def padded_length(axis: Axis) -> int:
    """Length of the axis after pad."""
    return axis.low + dilated(axis.input, axis.input_dilation) + axis.high


def under_tap(padded: jax.Array, geometry: Geometry, tap: Sequence[int]) -> jax.Array:
    """(batch, *output, channels): the padded input that tap `tap` of each window's place lies on, a strided slice."""
    starts, stops, steps = places_under(geometry, tap)
    return lax.slice(padded, (0, *starts, 0), (padded.shape[0], *stops, padded.shape[-1]), (1, *steps, 1))


def places_under(geometry: Geometry, tap: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Starts, stops and steps along the spatial axes of the slice of padded input under a tap."""
    starts = [t * axis.dilation for t, axis in zip(tap, geometry.axes, strict=True)]
    stops = [b + (axis.output - 1) * axis.stride + 1 for b, axis in zip(starts, geometry.axes, strict=True)]
    return starts, stops, [axis.stride for axis in geometry.axes]


def turned(w: jax.Array, groups: int) -> jax.Array:
    """w (*window, in // groups, out) turned by 180 degrees, in and out changed: (*window, out // groups, in).

    Turned last: an algorithm that turns its kernel back first then leaves XLA two turns side by side, which cancel.
    """
    *window, c, o = w.shape
    if groups == 1:  # one transpose, which XLA folds into a product
        return lax.rev(w.swapaxes(-2, -1), range(len(window)))
    w = w.reshape(*window, c, groups, o // groups)
    w = jnp.moveaxis(w, -3, -1).swapaxes(-3, -2).reshape(*window, o // groups, groups * c)
    return lax.rev(w, range(len(window)))


def as_stored(w: jax.Array, geometry: Geometry) -> jax.Array:
    """w (*window, in, out), or a turned kernel turned back: (*window, out, in), its last tap first.

    A product takes either; to bring 512 x 1024 channels into the other order takes as long as their product with 400
    places, since XLA:CPU reads single elements that are a power of two apart.
    """
    return lax.rev(w, range(geometry.rank)).swapaxes(-2, -1) if geometry.turned else w


def rows_product(x: jax.Array, stored: jax.Array, precision: Any, dtype: Any) -> jax.Array:
    """x (rows, in) times the transpose of (out, in)."""
    return lax.dot_general(x, stored, (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=dtype)


def unravelled(index: Any, shape: Sequence[Any]) -> list[Any]:
    """The place of a flat index that is not negative; shape[0] may be symbolic. No arithmetic along axes of one."""
    places = []
    for size in reversed(shape[1:]):
        places.append(0 if size == 1 else lax.rem(index, size))
        index = index if size == 1 else lax.div(index, size)
    return [index, *reversed(places)]


def total(terms: Sequence[jax.Array]) -> jax.Array:
    """The sum of terms that one loop computes, as CHAINS sums: in each, an addition waits for the one before."""
    chains = [functools.reduce(lax.add, terms[i::CHAINS]) for i in range(min(CHAINS, len(terms)))]
    return functools.reduce(lax.add, chains)


def images_at_once(batch: Any, bytes_each: int, most_bytes: float) -> int | None:
    """The largest part of the batch, a divisor of it, that takes most_bytes at most, or one image; None for all.

    A symbolic batch, as in an export, is not split.
    """
    if not isinstance(batch, int) or batch * bytes_each <= most_bytes or batch == 1:
        return None
    return max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * bytes_each <= most_bytes))


def few_at_once(batch: Any, bytes_each: int, most_bytes: int, few_bytes: int) -> int | None:
    """As images_at_once of few_bytes, where all images take more than most_bytes; else None."""
    if images_at_once(batch, bytes_each, most_bytes) is None:
        return None
    return images_at_once(batch, bytes_each, few_bytes)


def images_in_turn(batch: Any, bytes_each: int, most_bytes: float) -> int | None:
    """As images_at_once, for parts that may overlap (by_images) where few at once cost time.

    At least half of the most: without a divisor so large, what leaves the fewest to compute again. 3 of 13 planes.
    """
    divisor = images_at_once(batch, bytes_each, most_bytes)
    if divisor is None:
        return None
    most = max(1, int(most_bytes // bytes_each))
    return divisor if 2 * divisor >= most else min(range((most + 1) // 2, most + 1), key=lambda n: -(-batch // n) * n)


def by_images(run: Callable[[jax.Array], jax.Array], x: jax.Array, images: int | None) -> jax.Array:
    """run(x), of so many images at a time; None for all. The last part may have images that the one before had.

    Each part is written where it belongs in the result. lax.map would give parts to be reshaped, and XLA adds a bias to
    a reshaped array into another one of its size: 16 x 112 x 112 x 64 was mapped twice in each call.
    """
    return run(x) if images is None else by_first(lambda first: run(take_along(x, first, images)), x, images)


def by_first(run: Callable[[Any], jax.Array], x: jax.Array, images: int) -> jax.Array:
    """by_images of a function of the number of the first image: it takes of x what it needs, where it does."""
    shape = jax.eval_shape(run, 0)

    def write(index: jax.Array, y: jax.Array) -> jax.Array:
        first = start_of(index, images, x.shape[0])
        return put_along(y, run(first), first, axis=0)

    y = unwritten((x.shape[0], *shape.shape[1:]), shape.dtype, x)
    return lax.fori_loop(0, -(-x.shape[0] // images), write, y)


def start_of(index: Any, size: int, length: int) -> Any:
    """The first place of a part: of `size` each, the last of which ends with the `length`, whatever it has again."""
    return lax.min(index * size, length - size) if length % size else index * size


def fresh(array: jax.Array, index: Any, size: int, length: int, axis: int) -> jax.Array:
    """The part that start_of gives, with zeros where an earlier one had the same places: for sums over parts."""
    if length % size == 0:
        return array
    shape = [size if i == axis else 1 for i in range(array.ndim)]
    place = start_of(index, size, length) + lax.broadcasted_iota(index.dtype, shape, axis)
    return jnp.where(place >= index * size, array, jnp.zeros((), array.dtype))


def by_examples(run: Callable[..., jax.Array], x: jax.Array, g: jax.Array, bytes_each: int) -> jax.Array:
    """run(x, g, count) of a few of x (examples, batch, ...) and g at a time, merged with their batch; all results.

    Where one example takes so many bytes: a divisor of all examples at a time if there is a large one, else what is
    left comes last.
    """
    examples, batch = x.shape[:2]
    # An axis of length 1 would come to stand first in XLA's layout, and cost a copy of x and g.
    x, g = (a.reshape(-1, *a.shape[2:]) for a in (x, g))
    at_once = _examples_at_once(examples, bytes_each)
    rest = examples % at_once if isinstance(examples, int) else 0
    looped = examples - rest
    whole = [a[: looped * batch] if rest else a for a in (x, g)]
    parts = tuple(a.reshape(looped // at_once, at_once * batch, *a.shape[1:]) for a in whole)
    results = lax.map(lambda pair: run(pair[0], pair[1], at_once), parts)
    results = results.reshape(looped, *results.shape[2:])
    if rest:
        results = jnp.concatenate([results, run(x[looped * batch :], g[looped * batch :], rest)])
    return results


def _examples_at_once(examples: Any, bytes_each: int) -> int:
    if not isinstance(examples, int):  # symbolic, in an export
        return 1
    most = max(1, min(examples, EXAMPLES_BYTES // max(1, bytes_each)))
    divisor = max(n for n in range(1, most + 1) if examples % n == 0)
    return divisor if 2 * divisor > most else most


def unwritten(shape: Sequence[int], dtype: Any, like: jax.Array) -> jax.Array:
    """An array whose elements are all to be written, each the first of `like`.

    Zeros would be one array for all loops of a program with results of this shape, held until the last of them, and
    copied for each: forward and input gradient of 32 x 112 x 112 x 32 took 51 MB more.
    """
    first = lax.slice(like, (0,) * like.ndim, (1,) * like.ndim).reshape(())
    return jnp.broadcast_to(first.astype(dtype), shape)


def summed_at_once(x: jax.Array, g: jax.Array, sum_bytes: int, most_bytes: int) -> int:
    """Bytes that a kernel gradient may hold at once: no more than its operands, where its sum is quickly added to."""
    if sum_bytes > SMALL_SUM or not isinstance(x.shape[0], int):
        return most_bytes
    return min(most_bytes, max(SMALL_SUM, (x.size + g.size) * x.dtype.itemsize))


def parts_of(rows: Any, flops: Any, least: float | None = None, most: int = MOST_PARTS) -> int:
    """How many parts alike a sum over so many rows, of so many flops, is added up from."""
    if not isinstance(flops, int):  # symbolic, in an export
        return 1
    most = min(MOST_PARTS, most, int(flops / (PART_FLOPS if least is None else least)))
    return max((n for n in range(1, most + 1) if rows % n == 0), default=1)


def in_parts(
    run: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, g: jax.Array, flops: Any, rank: int = 1
) -> jax.Array:
    """run(x, g), of so many flops and axes, as a sum over parts of the batch: from cache, and it loses less."""
    parts = parts_of(x.shape[0], flops, PART_FLOPS_OF_VOLUME if rank > 2 else None)
    if parts == 1:
        return run(x, g)
    split = lambda array: array.reshape(parts, -1, *array.shape[1:])
    add = lambda total, pair: (total + run(*pair), None)
    shape = jax.eval_shape(run, split(x)[0], split(g)[0])
    return lax.scan(add, jnp.zeros(shape.shape, shape.dtype), (split(x), split(g)))[0]


def divided(run: Callable[[], jax.Array], shape: Sequence[int], dtype: Any) -> jax.Array:
    """run(), of that shape and dtype, as a loop of one step, which XLA unrolls.

    What loops over the batch is split over devices by _sharding: each computes it for the images that it holds.
    """
    return lax.fori_loop(0, 1, lambda _, zeros: run(), jnp.zeros(shape, dtype))


def apart(function: Callable[..., Any], *arrays: Any) -> Any:
    """function(*arrays) as a call that XLA does not inline: its operands and results are arrays in memory.

    XLA:CPU would else compute an operand again in each sum that reads it, and the last step of a result in each loop
    that uses it; lax.optimization_barrier is gone before it decides what to fuse.
    """
    return set_xla_metadata(jax.jit(function)(*arrays), inlineable="false")


def in_memory(x: jax.Array) -> jax.Array:
    """x, for what reads it several times: XLA neither computes it again in each reader nor copies it.

    A call that XLA does not inline, whose result is its operand. Nothing is moved: the shapes differ in an axis of 1.
    """
    return apart(lambda x: lax.expand_dims(x, (0,)), x)[0]


def packed(w: jax.Array) -> jax.Array:
    """w as an array in memory in the order of its axes, for loops that read a vector of its last axis at each place.

    XLA would have them read a kernel (out, in, height, width), transposed, where it lies, element by element: depthwise
    layers took 2 to 4 times as long. An array of one axis has one layout.
    """
    return apart(lambda w: w.reshape(-1), w).reshape(w.shape)


def together(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x and w, for XLA not there one without the other: nothing is moved out of a loop in which either changes.

    XLA would move each view of an x that a loop does not change in front of it, as an array of its own, where inside
    they are read from x in one loop with what is computed from them.
    """
    return lax.optimization_barrier((x, w))
