"""From primitive to replacement: lax's operations by jconv's, for accelerate, and jconv's by lax's, for automatic."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

from jax import lax

from jconv import _jax, adaptive, convolution, patches, pool_products, pooling, products
from jconv.rewriting import convolutions, plain, pools
from jconv.rewriting.walk import Rewriting

BY_JCONV = Rewriting(
    "accelerate",
    {
        lax.conv_general_dilated_p: convolutions.replace,
        lax.reduce_window_max_p: functools.partial(pools.replace_monoid, "max"),
        lax.reduce_window_min_p: functools.partial(pools.replace_monoid, "min"),
        lax.reduce_window_sum_p: functools.partial(pools.replace_monoid, "add"),
        lax.reduce_window_p: pools.replace_general,
        lax.select_and_scatter_add_p: pools.replace_scatter,
        lax.select_and_gather_add_p: pools.replace_gather,
    },
    transposed=lax.transpose,
)

# Every module that defines an operator is imported above, so that the definitions are all there.
_DEFINING = (adaptive, convolution, patches, pooling)
_BY_LAX = dict.fromkeys(_jax.definitions, plain.defined) | {
    products.convolve_p: plain.convolve,
    products.kernel_grad_p: plain.kernel_grad,
    products.input_grad_p: plain.input_grad,
    pool_products.winner_p: plain.winner,
    pool_products.extreme_p: plain.extreme,
    pool_products.scatter_p: plain.scatter,
    pool_products.window_sum_p: plain.window_sum,
    pool_products.window_spread_p: plain.window_spread,
}
_HERE = str(pathlib.Path(__file__).resolve().parents[1])


@functools.lru_cache(maxsize=256)
def by_lax(rules: str | tuple[str, ...]) -> Rewriting:
    """The way back. `rules`: names of the custom_vjp functions, beside jconv's own, that jax is to derive; or "all"."""
    ours: Callable[[str, str], bool] = lambda name, file: bool(file) and file.startswith(_HERE)
    named: Callable[[str, str], bool] = lambda name, file: rules == "all" or name in rules or ours(name, file)
    return Rewriting(f"automatic {rules}", _BY_LAX, named)


__all__: list[Any] = ["BY_JCONV", "by_lax"]
