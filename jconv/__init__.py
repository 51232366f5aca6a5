"""Convolution and pooling in JAX whose backward passes are written by hand. See README.md."""

import importlib
import typing

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

if typing.TYPE_CHECKING:
    from jconv import lax
    from jconv.autotuning import autotune
    from jconv.comparison import compare
    from jconv.explanation import explain
    from jconv.rewrite import accelerate, accelerated, automatic, report
    from jconv.tuning import Tuning

__all__ = [
    "Tuning",
    "accelerate",
    "accelerated",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "automatic",
    "autotune",
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


# What a program may never ask for: imported when it first does.
_LATER = {
    "Tuning": "jconv.tuning",
    "accelerate": "jconv.rewrite",
    "accelerated": "jconv.rewrite",
    "automatic": "jconv.rewrite",
    "autotune": "jconv.autotuning",
    "compare": "jconv.comparison",
    "explain": "jconv.explanation",
    "lax": "jconv.lax",
    "report": "jconv.rewrite",
}


def __getattr__(name: str) -> typing.Any:
    """Import what stands in _LATER."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_LATER[name])
    globals()[name] = found = module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
