"""Convolution and pooling in JAX whose backward passes are written by hand. See README.md."""

from jconv import lax
from jconv.adaptive import adaptive_avg_pool, adaptive_max_pool, global_avg_pool, global_max_pool, max_unpool
from jconv.comparison import compare
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
from jconv.explain import explain
from jconv.patches import fold, unfold
from jconv.pooling import avg_pool, lp_pool, max_pool, min_pool, sum_pool
from jconv.rewrite import accelerate, accelerated, automatic, report

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
