"""Convolution and pooling in JAX whose backward passes are written by hand. See README.md."""

import typing

from jconv import lax
from jconv.adaptive import adaptive_avg_pool, adaptive_max_pool, global_avg_pool, global_max_pool, max_unpool
from jconv.convolution import (
    conv,
    conv1d,
    conv2d,
    conv3d,
    conv_bias_grad,
    conv_input_grad,
    conv_kernel_grad,
    conv_transpose,
)
from jconv.patches import fold, unfold
from jconv.pooling import avg_pool, lp_pool, max_pool, min_pool, sum_pool
from jconv.rewrite import accelerate, accelerated, automatic, report

if typing.TYPE_CHECKING:
    from jconv.comparison import compare
    from jconv.explanation import explain

__all__ = [
    "accelerate",
    "accelerated",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "automatic",
    "avg_pool",
    "compare",
    "conv",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_bias_grad",
    "conv_input_grad",
    "conv_kernel_grad",
    "conv_transpose",
    "explain",
    "fold",
    "global_avg_pool",
    "global_max_pool",
    "lax",
    "lp_pool",
    "max_pool",
    "max_unpool",
    "min_pool",
    "report",
    "sum_pool",
    "unfold",
]


def __getattr__(name: str) -> typing.Any:
    """Import `compare` and `explain`, which a training run never calls, when they are first asked for."""
    if name == "compare":
        from jconv.comparison import compare as found
    elif name == "explain":
        from jconv.explanation import explain as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
