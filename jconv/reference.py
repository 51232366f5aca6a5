"""The documented formulas, literally, in NumPy: the oracle of the tests, and the page to read first.

Along one axis (kernel w, stride s, kernel dilation d, low padding l; x is 0 outside its range), channels summed:
    y[p]  = sum over t of x[p*s + t*d - l] w[t]       cross-correlation of x with w
    dw[t] = sum over p of x[p*s + t*d - l] g[p]       valid cross-correlation of x with g: s and d change places
    dx[a] = sum of g[p] w[t] where p*s + t*d - l = a  full convolution of g, dilated by s, with w turned by 180 degrees
    db    = sum over p of g[p]
p is a place in the output, a an element of the input, t a tap of the window; g, shaped like y, is its cotangent. All
three products are bilinear, and the derivative of each is made of the other two. Poolings slide the same window.

Every function loops over the taps t in plain Python and takes all places p at once. Arrays are channels_last: x is
(batch, *space, channels), kernel (*window, in // groups, out), with any number of spatial axes from 1; a scalar option
holds for each of them. Sums are float64, complex128 for complex (nothing is conjugated, as in JAX) and int64 for
integers (uint64 stays). Nothing comes from the rest of the library; arguments are not checked as carefully as there.
Source: Goodfellow, Bengio, Courville 2016, Deep Learning, eq. 9.8-9.13; d and l added.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray[Any, Any]
Sizes = int | Sequence[int]
Padding = str | int | Sequence[int | tuple[int, int]]

# "fmt: skip" keeps signatures on two or three lines: members of a family are read against one another.

# --- Which element does tap t of the window see at place p? ---------------------------------------------------------

_REPEATS: dict[str, Callable[[Array, int], Array]] = {  # paddings of real values: the element at place j, of n in all
    "CIRCULAR": lambda j, n: j % n,
    "REFLECT": lambda j, n: np.minimum(j % max(1, 2 * n - 2), -j % max(1, 2 * n - 2)),
    "EDGE": lambda j, n: np.clip(j, 0, n - 1),
}


@dataclasses.dataclass(frozen=True)
class _Axis:
    """One spatial axis; `source` is the element at each place of the input, which repeats may have made longer."""

    source: Array
    size: int
    stride: int
    dilation: int
    input_dilation: int
    padding: tuple[int, int]
    ceil_mode: bool

    @property
    def reach(self) -> int:
        return (self.size - 1) * self.dilation + 1

    @property
    def extent(self) -> int:
        """Length of the dilated and padded input."""
        return max(0, (len(self.source) - 1) * self.input_dilation + 1) + sum(self.padding)

    @property
    def places(self) -> int:
        """Output length: rounded down; in ceil_mode up, but a last window that starts in the right padding drops."""
        if not self.ceil_mode:
            return max(0, (self.extent - self.reach) // self.stride + 1)
        places = -((self.reach - self.extent) // self.stride) + 1
        return max(0, places - ((places - 1) * self.stride >= self.extent - max(0, self.padding[1])))

    @property
    def positions(self) -> Array:
        """p*s + t*d, a position in the dilated and padded input: (places, size)."""
        return np.add.outer(np.arange(self.places) * self.stride, np.arange(self.size) * self.dilation)

    @property
    def elements(self) -> Array:
        """The element a = p*s + t*d - l that tap t sees at place p, -1 where there is none: (places, size)."""
        a, between = np.divmod(self.positions - self.padding[0], self.input_dilation)
        real = (between == 0) & (a >= 0) & (a < len(self.source)) & (self.positions < self.extent)
        return np.append(self.source, -1)[np.where(real, a, -1)]


def _axis(n: int, size: int, stride: int, padding: Any, dilation: int, input_dilation: int, ceil_mode: bool) -> _Axis:
    source, reach, dilated = np.arange(n), (size - 1) * dilation + 1, max(0, (n - 1) * input_dilation + 1)
    match padding:
        case "VALID":
            padding = (0, 0)
        case "SAME" | "SAME_LOWER":  # ceil(dilated / stride) places; the odd zero is on the right, or on the left
            total = max(0, (math.ceil(dilated / stride) - 1) * stride + reach - dilated)
            padding = (total // 2, total - total // 2)[:: 1 if padding == "SAME" else -1]
        case "CAUSAL":  # place p sees nothing that comes after it
            padding = (dilation * (size - 1), 0)
        case "CIRCULAR" | "REFLECT" | "EDGE":  # as Flax: reach - 1 repeats, the odd one on the right, then VALID
            source, padding = _REPEATS[padding](np.arange(n + reach - 1) - (reach - 1) // 2, n), (0, 0)
        case int() | np.integer():
            padding = (int(padding), int(padding))
        case str():
            raise ValueError(f"unknown padding {padding!r}")
    return _Axis(source, size, stride, dilation, input_dilation, padding, ceil_mode)


def _axes(space: Sequence[int], *options: Any) -> list[_Axis]:
    """One _Axis a spatial axis; a scalar option holds for all."""
    each = [[value] * len(space) if isinstance(value, str | int | np.integer) else value for value in options]
    return [_axis(*one) for one in zip(space, *each, strict=True)]


def _pool_axes(shape: Sequence[int], window_shape: Sizes, strides: Sizes | None, padding, window_dilation, ceil_mode):
    return _axes(shape[1:-1], window_shape, 1 if strides is None else strides, padding, window_dilation, 1, ceil_mode)


def _elements(axes: Sequence[_Axis]) -> list[Array]:
    return [axis.elements for axis in axes]


def _taps(elements: Sequence[Array], space: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Array]]:
    """For each tap t, row-major: t, and the flat index of the element it sees at every place, -1 where it sees none."""
    for t in itertools.product(*(range(axis.shape[1]) for axis in elements)):
        flat, real = np.array(0), np.array(True)
        for n, a in zip(space, np.ix_(*(axis[:, k] for axis, k in zip(elements, t, strict=True))), strict=True):
            flat, real = flat * n + a, real & (a >= 0)
        yield t, np.where(real, flat, -1)


# --- Arrays as rows, one an element; one more, which index -1 means, stands for the padding -------------------------


def _exact(x: ArrayLike) -> Array:
    """The same numbers in the widest type of their kind."""
    x = np.asarray(x)
    if np.issubdtype(x.dtype, np.integer):
        return x if x.dtype == np.uint64 else x.astype(np.int64)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])


def _rows(x: Array) -> Array:
    """What is read: index -1 reads a zero, for x is 0 outside its range."""
    return np.pad(_flat(x), ((0, 0), (0, 1), (0, 0)))


def _zero_rows(shape: Sequence[int], dtype: Any) -> Array:
    """What is written to: index -1 writes to the last row, which is cut off in the end."""
    return np.zeros((shape[0], math.prod(shape[1:-1]) + 1, shape[-1]), dtype)


def _zero_places(x: Array, elements: Sequence[Array], channels: int, dtype: Any) -> Array:
    return np.zeros((len(x), *map(len, elements), channels), dtype)


def _spread(share: Callable[..., Array], elements: Sequence[Array], shape: Sequence[int], dtype: Any) -> Array:
    """dx[a] = sum of share(t, a) over all places p and taps t that see element a."""
    dx = _zero_rows(shape, dtype)
    for t, a in _taps(elements, shape[1:-1]):
        seen: Any = (slice(None), a)
        np.add.at(dx, seen, share(t, a))
    return dx[:, :-1].reshape(shape)


# --- Convolution ----------------------------------------------------------------------------------------------------


def _grouped(product: Callable[[Array, Array], Array], groups: int, first: Array, second: Array) -> Array:
    """Each group of channels is a convolution of its own: split the last axes, join the results."""
    pairs = zip(np.split(first, groups, axis=-1), np.split(second, groups, axis=-1), strict=True)
    return np.concatenate([product(*pair) for pair in pairs], axis=-1)


def conv(
    x: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None = None, *, strides: Sizes = 1, padding: Padding = "VALID",
    input_dilation: Sizes = 1, kernel_dilation: Sizes = 1, feature_group_count: int = 1,
) -> Array:  # fmt: skip
    """Convolution: y[n, p] = bias + sum over t of x[n, p*s + t*d - l] kernel[t] (eq. 9.8).

    Example:
      >>> conv(np.array([1, 2, 3, 4]).reshape(1, 4, 1), np.array([1, 0, -1]).reshape(3, 1, 1)).ravel()
      array([-2, -2])
    """
    x, kernel = _exact(x), _exact(kernel)
    axes = _axes(x.shape[1:-1], kernel.shape[:-2], strides, padding, kernel_dilation, input_dilation, False)
    elements = _elements(axes)

    def product(x: Array, kernel: Array) -> Array:
        rows, y = _rows(x), _zero_places(x, elements, kernel.shape[-1], np.result_type(x, kernel))
        for t, a in _taps(elements, x.shape[1:-1]):
            y += rows[:, a] @ kernel[t]  # forward: y is the cross-correlation of x with w
        return y

    y = _grouped(product, feature_group_count, x, kernel)
    return y if bias is None else y + _exact(bias)


def conv_kernel_grad(
    x: ArrayLike, g: ArrayLike, kernel_shape: Sequence[int], *, strides: Sizes = 1, padding: Padding = "VALID",
    input_dilation: Sizes = 1, kernel_dilation: Sizes = 1, feature_group_count: int = 1,
) -> Array:  # fmt: skip
    """Gradient of conv with respect to its kernel: dkernel[t] = sum over n, p of x[n, p*s + t*d - l] g[n, p] (9.11).

    This is a convolution with g for its kernel: s, the step from p to p + 1, dilates g; d, that of t, is the stride.

    Example:
      >>> conv_kernel_grad(np.arange(1, 5).reshape(1, 4, 1), np.ones((1, 2, 1)), (3, 1, 1)).ravel()
      array([3., 5., 7.])
    """
    x, g = _exact(x), _exact(g)
    summed = tuple(range(g.ndim - 1))  # batch and space
    axes = _axes(x.shape[1:-1], kernel_shape[:-2], strides, padding, kernel_dilation, input_dilation, False)
    elements = _elements(axes)

    def product(x: Array, g: Array) -> Array:
        rows, dkernel = _rows(x), np.zeros((*kernel_shape[:-1], g.shape[-1]), np.result_type(x, g))
        for t, a in _taps(elements, x.shape[1:-1]):
            # kernel gradient: the valid cross-correlation of x with g (stride and dilation change places)
            dkernel[t] = np.tensordot(rows[:, a], g, (summed, summed))
        return dkernel

    return _grouped(product, feature_group_count, x, g)


def conv_bias_grad(g: ArrayLike) -> Array:
    """Gradient of conv with respect to its bias: dbias = sum over n, p of g[n, p]."""
    return _exact(g).sum(axis=tuple(range(np.ndim(g) - 1)))  # bias gradient: g summed over batch and space


def conv_input_grad(
    g: ArrayLike, kernel: ArrayLike, input_shape: Sequence[int], *, strides: Sizes = 1, padding: Padding = "VALID",
    input_dilation: Sizes = 1, kernel_dilation: Sizes = 1, feature_group_count: int = 1,
) -> Array:  # fmt: skip
    """Gradient of conv with respect to x: dx[n, a] = sum of g[n, p] kernel[t] where p*s + t*d - l = a (9.13).

    With T = k - 1 - t, a tap of the turned kernel, p*s = a + T*d - (d*(k - 1) - l): a window that slides over g dilated
    by s, with low padding d*(k - 1) - l. The high padding brings it to input_shape; either may be negative, a crop.

    Example:
      >>> conv_input_grad(np.ones((1, 2, 1)), np.arange(1, 4).reshape(3, 1, 1), (1, 4, 1)).ravel()
      array([1., 3., 5., 3.])
    """
    g, kernel = _exact(g), _exact(kernel)
    axes = _axes(input_shape[1:-1], kernel.shape[:-2], strides, padding, kernel_dilation, input_dilation, False)
    zeros = []
    for axis, places in zip(axes, g.shape[1:-1], strict=True):
        low = axis.reach - 1 - axis.padding[0]
        high = (len(axis.source) - 1) * axis.input_dilation + axis.reach - max(0, (places - 1) * axis.stride + 1) - low
        zeros.append((low, high))

    def product(g: Array, kernel: Array) -> Array:
        turned = np.flip(kernel, tuple(range(len(axes)))).swapaxes(-1, -2)
        # input gradient: the full convolution of g, dilated by the stride and zero-padded, with the kernel turned by
        # 180 degrees (where x was dilated, one place in input_dilation is an element: that is the stride here)
        dilations: dict[str, Any] = {"input_dilation": strides, "kernel_dilation": kernel_dilation}
        return conv(g, turned, strides=input_dilation, padding=zeros, **dilations)

    dx = _grouped(product, feature_group_count, g, kernel)
    # Where the padding repeats elements, the gradient of each repeat is added to its element; else this copies dx.
    return _spread(lambda t, a: dx, [axis.source[:, None] for axis in axes], input_shape, dx.dtype)


def conv_transpose(
    y: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None = None, *, strides: Sizes = 1, padding: Padding = "VALID",
    output_padding: Sizes = 0, kernel_dilation: Sizes = 1, feature_group_count: int = 1,
) -> Array:  # fmt: skip
    """The adjoint of conv with the same kernel, (*window, channels of the result // groups, channels of y).

    A spatial axis of the result has length (in - 1)*s - low - high + d*(k - 1) + 1 + output_padding; for "SAME" and
    "SAME_LOWER" in*s (they take no output_padding); for the repeating ones (in - 1)*s + 1 + output_padding.

    Example:
      >>> conv_transpose(np.array([1, 2]).reshape(1, 2, 1), np.array([1, 10, 100]).reshape(3, 1, 1), strides=2).ravel()
      array([  1,  10, 102,  20, 200])
    """
    y, kernel = _exact(y), _exact(kernel)
    same = isinstance(padding, str) and padding.startswith("SAME")
    if same and np.any(output_padding):
        raise ValueError(f"conv_transpose: output_padding={output_padding!r} must be 0 where padding={padding!r}")
    space = []
    axes = _axes(y.shape[1:-1], kernel.shape[:-2], strides, padding, kernel_dilation, 1, False)
    for axis, n, extra in zip(axes, y.shape[1:-1], np.broadcast_to(output_padding, len(axes)), strict=True):
        padded_by = axis.extent - n  # low + high, or the number of repeats
        space.append(n * axis.stride if same else (n - 1) * axis.stride - padded_by + axis.reach + int(extra))
    x = conv_input_grad(  # transposed convolution is the input gradient under another name
        y, kernel, (len(y), *space, kernel.shape[-2] * feature_group_count), strides=strides, padding=padding,
        kernel_dilation=kernel_dilation, feature_group_count=feature_group_count,
    )  # fmt: skip
    return x if bias is None else x + _exact(bias)


# --- Max pooling: a gather by the winner's index, its gradient the scatter to it, and each is the other's derivative --


def _winners(x: Array, elements: Sequence[Array], beats: Callable[..., Array]) -> Array:
    """Index of the winner of each window: the first in row-major order; the first NaN if there is one; -1 if empty."""
    rows, best = _rows(x), _zero_places(x, elements, x.shape[-1], x.dtype)
    winner = np.full(best.shape, -1)
    for _, a in _taps(elements, x.shape[1:-1]):
        rival = rows[:, a]
        wins = (winner < 0) | beats(rival, best) | (np.isnan(rival) & ~np.isnan(best))
        wins &= a[..., None] >= 0  # padding never wins over an element, not even over -inf
        best, winner = np.where(wins, rival, best), np.where(wins, a[..., None], winner)
    return winner


def _gather(x: Array, winner: Array) -> Array:
    """y[p] = x[winner[p]], 0 where that is -1."""
    return np.take_along_axis(_rows(x), _flat(winner), axis=1).reshape(winner.shape)


def _scatter(g: Array, winner: Array, shape: Sequence[int]) -> Array:
    """dx[winner[p]] += g[p]: all others get 0."""
    dx = _zero_rows(shape, g.dtype)
    batch, _, channel = np.ogrid[: shape[0], :1, : shape[-1]]
    np.add.at(dx, (batch, _flat(winner), channel), _flat(g))
    return dx[:, :-1].reshape(shape)


def _extreme_pool(x: ArrayLike, elements: Sequence[Array], beats: Any, return_indices: bool) -> Any:
    x, dtype = _exact(x), np.asarray(x).dtype
    limits = (np.iinfo(dtype).min, np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else (-np.inf, np.inf)
    winner = _winners(x, elements, beats)
    # max pooling is a gather by the winner's index; a window wholly in the padding gives the identity
    y = np.where(winner < 0, np.array(limits[beats is np.less], x.dtype), _gather(x, winner))
    return (y, winner) if return_indices else y


def _extreme_pool_grad(x: ArrayLike, g: ArrayLike, elements: Sequence[Array], beats: Any) -> Array:
    x, g = _exact(x), _exact(g)
    return _scatter(g, _winners(x, elements, beats), x.shape)  # its gradient the scatter to it (all others get 0)


def max_pool(
    x: ArrayLike, window_shape: Sizes, strides: Sizes | None = None, padding: Padding = "VALID", *,
    window_dilation: Sizes = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """y[n, p] = max over t of x[n, p*s + t*d - l]; with return_indices also where it stands, row-major over space.

    A window wholly in the padding gives -inf, or the least integer of x's own dtype, and index -1.

    Example:
      >>> max_pool(np.array([1.0, 5.0, 5.0, 2.0]).reshape(1, 4, 1), 2, return_indices=True)[1].ravel()
      array([1, 1, 2])
    """
    axes = _pool_axes(np.shape(x), window_shape, strides, padding, window_dilation, ceil_mode)
    return _extreme_pool(x, _elements(axes), np.greater, return_indices)


def max_pool_grad(
    x: ArrayLike, g: ArrayLike, window_shape: Sizes, strides: Sizes | None = None, padding: Padding = "VALID", *,
    window_dilation: Sizes = 1, ceil_mode: bool = False,
) -> Array:  # fmt: skip
    """Gradient of max_pool: dx[n, a] = sum of g[n, p] over the windows p whose winner is a."""
    axes = _pool_axes(np.shape(x), window_shape, strides, padding, window_dilation, ceil_mode)
    return _extreme_pool_grad(x, g, _elements(axes), np.greater)


def min_pool(
    x: ArrayLike, window_shape: Sizes, strides: Sizes | None = None, padding: Padding = "VALID", *,
    window_dilation: Sizes = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Any:  # fmt: skip
    """max_pool with the order reversed: a window wholly in the padding gives inf, or the greatest integer."""
    axes = _pool_axes(np.shape(x), window_shape, strides, padding, window_dilation, ceil_mode)
    return _extreme_pool(x, _elements(axes), np.less, return_indices)


def min_pool_grad(
    x: ArrayLike, g: ArrayLike, window_shape: Sizes, strides: Sizes | None = None, padding: Padding = "VALID", *,
    window_dilation: Sizes = 1, ceil_mode: bool = False,
) -> Array:  # fmt: skip
    """Gradient of min_pool: dx[n, a] = sum of g[n, p] over the windows p whose winner is a."""
    axes = _pool_axes(np.shape(x), window_shape, strides, padding, window_dilation, ceil_mode)
    return _extreme_pool_grad(x, g, _elements(axes), np.less)


def max_unpool(y: ArrayLike, indices: ArrayLike, output_shape: Sizes) -> Array:
    """x[n, indices[n, p]] = y[n, p], elsewhere 0; index -1 is dropped; of places with one index, any one is kept."""
    y, indices = _exact(y), np.asarray(indices)
    space = (output_shape,) * (y.ndim - 2) if isinstance(output_shape, int) else tuple(output_shape)
    if np.any((indices < -1) | (indices >= math.prod(space))):
        raise ValueError(f"max_unpool: indices must be -1 or elements of output_shape={output_shape!r}")
    shape = (len(y), *space, y.shape[-1])
    x = _zero_rows(shape, y.dtype)
    np.put_along_axis(x, _flat(indices), _flat(y), axis=1)
    return x[:, :-1].reshape(shape)


def max_unpool_grad(g: ArrayLike, indices: ArrayLike) -> Array:
    """Gradient of max_unpool: dy[n, p] = g[n, indices[n, p]], the gather; 0 where the index is -1."""
    return _gather(_exact(g), np.asarray(indices))


# --- Average pooling is linear; its gradient spreads g / window size evenly ------------------------------------------


def _sum(x: Array, elements: Sequence[Array]) -> Array:
    rows, y = _rows(x), _zero_places(x, elements, x.shape[-1], x.dtype)
    for _, a in _taps(elements, x.shape[1:-1]):
        y += rows[:, a]
    return y


def _window_size(axes: Sequence[_Axis], count_include_pad: bool, divisor_override: int | None) -> Array:
    """What a window's sum is divided by: its elements, its padding too if asked, nothing beyond the right padding."""
    if divisor_override is not None:
        return np.array(divisor_override)
    counted = [axis.positions < axis.extent if count_include_pad else axis.elements >= 0 for axis in axes]
    return _product([taps.sum(axis=1) for taps in counted])


def _product(sizes: Sequence[Array]) -> Array:
    """The size of each window from its sizes along the axes, as (*places, 1)."""
    return np.prod(np.stack(np.meshgrid(*sizes, indexing="ij")), axis=0)[..., None]


def sum_pool(
    x: ArrayLike, window_shape: Sizes, strides: Sizes | None = None, padding: Padding = "VALID", *,
    window_dilation: Sizes = 1, ceil_mode: bool = False,
) -> Array:  # fmt: skip
    """y[n, p] = sum over t of x[n, p*s + t*d - l]."""
    axes = _pool_axes(np.shape(x), window_shape, strides, padding, window_dilation, ceil_mode)
    return _sum(_exact(x), _elements(axes))


def sum_pool_grad(
    g: ArrayLike, input_shape: Sequence[int], window_shape: Sizes, strides: Sizes | None = None,
    padding: Padding = "VALID", *, window_dilation: Sizes = 1, ceil_mode: bool = False,
) -> Array:  # fmt: skip
    """Gradient of sum_pool: dx[n, a] = sum of g[n, p] over all p and t where p*s + t*d - l = a."""
    g, axes = _exact(g), _pool_axes(input_shape, window_shape, strides, padding, window_dilation, ceil_mode)
    return _spread(lambda t, a: g, _elements(axes), input_shape, g.dtype)


def avg_pool(
    x: ArrayLike, window_shape: Sizes, strides: Sizes | None = None, padding: Padding = "VALID", *,
    window_dilation: Sizes = 1, ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:  # fmt: skip
    """y[n, p] = sum over t of x[n, p*s + t*d - l] / window size.

    The size is that of the window, without what lies beyond the right padding in ceil_mode, without all padding if not
    count_include_pad, or divisor_override. A window without elements then has 0 / 0 = nan, as the division has it.

    Example:
      >>> avg_pool(np.arange(1, 8).reshape(1, 7, 1), 3, 2).ravel()
      array([2., 4., 6.])
    """
    axes = _pool_axes(np.shape(x), window_shape, strides, padding, window_dilation, ceil_mode)
    with np.errstate(invalid="ignore"):
        return _sum(_exact(x), _elements(axes)) / _window_size(axes, count_include_pad, divisor_override)


def avg_pool_grad(
    g: ArrayLike, input_shape: Sequence[int], window_shape: Sizes, strides: Sizes | None = None,
    padding: Padding = "VALID", *, window_dilation: Sizes = 1, ceil_mode: bool = False, count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:  # fmt: skip
    """Gradient of avg_pool: dx[n, a] = sum of g[n, p] / window size over all p and t where p*s + t*d - l = a."""
    axes = _pool_axes(input_shape, window_shape, strides, padding, window_dilation, ceil_mode)
    size = _window_size(axes, count_include_pad, divisor_override)
    share = _exact(g) / np.where(size == 0, 1, size)  # a window without elements spreads nothing
    return _spread(lambda t, a: share, _elements(axes), input_shape, share.dtype)  # spreads g / window size evenly


def lp_pool(
    x: ArrayLike, p: float, window_shape: Sizes, strides: Sizes | None = None, padding: Padding = "VALID", *,
    window_dilation: Sizes = 1, ceil_mode: bool = False,
) -> Array:  # fmt: skip
    """The p-norm of each window: y = (sum of |x[a]|^p over its elements a)^(1/p), max of |x[a]| for p = inf."""
    axes = _pool_axes(np.shape(x), window_shape, strides, padding, window_dilation, ceil_mode)
    size = np.abs(_exact(x)).astype(np.float64)
    if p == np.inf:
        return _gather(size, _winners(size, _elements(axes), np.greater))
    return _sum(size**p, _elements(axes)) ** (1 / p)


def lp_pool_grad(
    x: ArrayLike, p: float, g: ArrayLike, window_shape: Sizes, strides: Sizes | None = None,
    padding: Padding = "VALID", *, window_dilation: Sizes = 1, ceil_mode: bool = False,
) -> Array:  # fmt: skip
    """Gradient of lp_pool, x real: dx[a] = sum of g sign(x[a]) (|x[a]| / y)^(p - 1) over the windows that see a.

    For p = inf, sign(x[a]) g goes to the winner of |x|. An element that is 0 gets 0, and so does an all-zero window.
    """
    x, g = _exact(x).astype(np.float64), _exact(g)
    options: dict[str, Any] = {"window_dilation": window_dilation, "ceil_mode": ceil_mode}
    if p == np.inf:
        return np.sign(x) * max_pool_grad(np.abs(x), g, window_shape, strides, padding, **options)
    rows, y = _rows(x), lp_pool(x, p, window_shape, strides, padding, **options)

    def share(t: Any, a: Array) -> Array:
        some = (rows[:, a] != 0) & (y != 0)
        ratio = np.divide(np.abs(rows[:, a]), y, out=np.ones_like(y), where=some)
        return np.where(some, g * np.sign(rows[:, a]) * ratio ** (p - 1), 0)

    return _spread(share, _elements(_pool_axes(x.shape, window_shape, strides, padding, **options)), x.shape, x.dtype)


# --- Adaptive pooling: output place i of m sees the elements from floor(i*n/m) to ceil((i + 1)*n/m) ------------------


def _adaptive(shape: Sequence[int], output_shape: Sizes) -> list[Array]:
    """As _Axis.elements: (places, widest window), -1 behind the end of a narrower one."""
    tables = []
    for n, m in zip(shape[1:-1], np.broadcast_to(output_shape, len(shape) - 2), strict=True):
        start, end = np.arange(m) * n // m, -(-np.arange(1, m + 1) * n // m)
        a = np.add.outer(start, np.arange(max(end - start, default=0)))
        tables.append(np.where(a < end[:, None], a, -1))
    return tables


def adaptive_max_pool(x: ArrayLike, output_shape: Sizes, return_indices: bool = False) -> Any:
    """y[n, i] = max of x[n, a] where floor(i*n/m) <= a < ceil((i + 1)*n/m); indices as max_pool gives them."""
    return _extreme_pool(x, _adaptive(np.shape(x), output_shape), np.greater, return_indices)


def adaptive_max_pool_grad(x: ArrayLike, g: ArrayLike) -> Array:
    """Gradient of adaptive_max_pool; the output shape is that of g."""
    return _extreme_pool_grad(x, g, _adaptive(np.shape(x), np.shape(g)[1:-1]), np.greater)


def adaptive_avg_pool(x: ArrayLike, output_shape: Sizes) -> Array:
    """y[n, i] = mean of x[n, a] where floor(i*n/m) <= a < ceil((i + 1)*n/m)."""
    elements = _adaptive(np.shape(x), output_shape)
    return _sum(_exact(x), elements) / _product([(a >= 0).sum(axis=1) for a in elements])


def adaptive_avg_pool_grad(g: ArrayLike, input_shape: Sequence[int]) -> Array:
    """Gradient of adaptive_avg_pool; the output shape is that of g."""
    elements = _adaptive(input_shape, np.shape(g)[1:-1])
    share = _exact(g) / _product([(a >= 0).sum(axis=1) for a in elements])
    return _spread(lambda t, a: share, elements, input_shape, share.dtype)


# --- Patches: the adjoint of unfold is fold ---------------------------------------------------------------------------


def unfold(
    x: ArrayLike, window_shape: Sizes, *, strides: Sizes = 1, padding: Padding = "VALID", window_dilation: Sizes = 1,
) -> Array:  # fmt: skip
    """columns[n, p, (c, t)] = x[n, p*s + t*d - l, c], of channel c and tap t (row-major) the channel the slower.

    Example:
      >>> unfold(np.arange(4).reshape(1, 4, 1), 3)
      array([[[0, 1, 2],
              [1, 2, 3]]])
    """
    x = _exact(x)
    elements = _elements(_pool_axes(x.shape, window_shape, strides, padding, window_dilation, False))
    rows = _rows(x)
    columns = np.stack([rows[:, a] for _, a in _taps(elements, x.shape[1:-1])], axis=-1)
    return columns.reshape(*columns.shape[:-2], math.prod(columns.shape[-2:]))


def fold(
    columns: ArrayLike, output_shape: Sizes, window_shape: Sizes, *, strides: Sizes = 1, padding: Padding = "VALID",
    window_dilation: Sizes = 1,
) -> Array:  # fmt: skip
    """x[n, a, c] = sum of columns[n, p, (c, t)] over all p and t where p*s + t*d - l = a: the adjoint of unfold."""
    columns = _exact(columns)
    batch, *places, features = columns.shape
    space = (output_shape,) * len(places) if isinstance(output_shape, int) else tuple(output_shape)
    axes = _pool_axes((batch, *space, 0), window_shape, strides, padding, window_dilation, False)
    window = [axis.size for axis in axes]
    channels = features // math.prod(window)
    taps = columns.reshape(batch, *places, channels, *window)
    return _spread(lambda t, a: taps[..., *t], _elements(axes), (batch, *space, channels), columns.dtype)
