"""Wrong calls of single operators: arrays that do not fit one another, results that would be empty, odd options.

Each row: the arguments that are replaced, the error, what its message says behind "operator: ".
"""

from typing import Any

import numpy as np

from tests.wrong import IMAGE, KERNEL, RIGHT, TYPE, VALUE, Wrong, X, Y, zeros

COMPLEX = np.complex64
GROUPS = "feature_group_count=3 must divide the 4 input channels; .* shape"
TALL, WIDE = zeros(7, 2, 4, 6), zeros(3, 6, 4, 6)

# conv, conv2d and what shares their arrays.

CONV: list[Any] = [
    ({"x": zeros(6, 4)}, VALUE, r"x must have 4 axes \(batch, 2 spatial, channels\) or, unbatched, 3, got shape \(6, 4\)"),
    ({"x": zeros(1, 1, 6, 5, 4)}, VALUE, r"x must have 4 axes .* got shape \(1, 1, 6, 5, 4\)"),
    ({"x": zeros()}, VALUE, r"x must have 4 axes .* got shape \(\)"),
    ({"x": zeros(2, 6, 5, 3)}, VALUE, r"kernel must have 3 input channels .* got 4; x has shape \(2, 6, 5, 3\)"),
    ({"kernel": zeros(3, 2, 5, 6)}, VALUE, r"kernel must have 4 input channels .* got 5; .* kernel \(3, 2, 5, 6\)"),
    ({"kernel": zeros(0, 2, 4, 6)}, VALUE, r"kernel must have at least one tap along each axis, got window \(0, 2\); .*shape"),
    ({"kernel": TALL}, VALUE, r"the window does not fit on spatial axis 0: window 7 with .* input 6 .* would be empty"),
    ({"kernel": WIDE}, VALUE, r"the window does not fit on spatial axis 1: window 6 .* covers 6 elements, the input 5"),
    ({"x": zeros(2, 0, 5, 4)}, VALUE, r"the window does not fit on spatial axis 0: window 3 .* the input 0 .* has 0"),
    ({"padding": -20}, VALUE, r"the window does not fit on spatial axis 0: .* padding \(-20, -20\) has 0; .* empty"),
    ({"padding": ((0, 0), (-2, -2))}, VALUE, r"the window does not fit on spatial axis 1: .* \(-2, -2\) has 1"),
    ({"kernel_dilation": 3}, VALUE, "the window does not fit on spatial axis 0: window 3 with dilation 3 covers 7 elements"),
    ({"feature_group_count": 3}, VALUE, GROUPS),
    ({"feature_group_count": 2}, VALUE, r"kernel must have 2 input channels \(the input's 4 / feature_group_count=2\), got 4"),
    ({"kernel": zeros(3, 2, 1, 6), "feature_group_count": 4}, VALUE, "feature_group_count=4 must divide the kernel's 6 out"),
    ({"feature_group_count": 10**30}, VALUE, "feature_group_count=10* must divide the 4 input channels"),
    ({"data_format": "channels_first"}, VALUE, r"kernel must have 6 input channels .* got 2; .* data_format='channels_first'"),
    ({"bias": zeros(4)}, VALUE, r"bias must have shape \(6,\), one a result channel, got \(4,\)"),
    ({"bias": zeros()}, VALUE, r"bias must have shape \(6,\), one a result channel, got \(\)"),
    ({"bias": zeros(1, 6)}, VALUE, r"bias must have shape \(6,\), one a result channel, got \(1, 6\)"),
    ({"kernel": KERNEL.astype(np.float16)}, TYPE, "x and kernel and bias must have one dtype, got x float32, kernel float16"),
    ({"x": X.astype(np.int32)}, TYPE, "x and kernel and bias must have one dtype, got x int32, .*; cast with .astype first"),
    ({"bias": zeros(6, dtype=COMPLEX)}, TYPE, "x and kernel and bias must have one dtype, .*, bias complex64"),
    ({"padding": "CIRCULAR", "input_dilation": 2}, VALUE, r"padding='CIRCULAR' takes values .* input_dilation must be 1, got \(2, 2\)"),
    ({"padding": "REFLECT", "x": zeros(2, 1, 5, 4)}, VALUE, r"padding='REFLECT' needs at least 2 elements along an axis, got .*\(1, 5\)"),
    ({"padding": "EDGE", "x": zeros(2, 0, 5, 4)}, VALUE, "padding='EDGE' needs at least 1 elements along an axis"),
    ({"algorithm": {"forward": 3}}, TYPE, "algorithm=3 must be a string, one of 'auto'"),
    ({"algorithm": {"kernel_grad": "magic"}}, VALUE, "algorithm='magic' must be one of 'auto'"),
    ({"algorithm": {"input_grad": "matmul"}}, VALUE, r"algorithm='matmul' does not apply to the input_grad product .*window \(3, 2\)"),
    ({"precision": ("high", "best")}, VALUE, "precision='best' must be None, a jax.lax.Precision, or one of"),
    ({"x": X.astype("int8"), "kernel": KERNEL.astype("int8"), "bias": None, "preferred_element_type": "uint8"}, VALUE,
     "preferred_element_type='uint8' must be of the same kind as the operands' int8"),
]  # fmt: skip

CONV1D: list[Any] = [
    ({"x": zeros(2, 6, 5, 4)}, VALUE, r"x must have 3 axes \(batch, 1 spatial, channels\) or, unbatched, 2, got shape"),
    ({"kernel": KERNEL}, VALUE, r"kernel must have 1 spatial axes and so 3 axes, got shape \(3, 2, 4, 6\)"),
    ({"kernel": zeros(4, 6)}, VALUE, r"kernel must have at least 3 axes .* got shape \(4, 6\)"),
    ({"kernel": zeros(7, 4, 6)}, VALUE, "the window does not fit on spatial axis 0: window 7"),
    ({"bias": zeros(4)}, VALUE, r"bias must have shape \(6,\)"),
    ({"feature_group_count": 3}, VALUE, GROUPS),
]  # fmt: skip

CONV3D: list[Any] = [
    ({"x": zeros(5, 4)}, VALUE, r"x must have 5 axes \(batch, 3 spatial, channels\) or, unbatched, 4, got shape \(5, 4\)"),
    ({"kernel": KERNEL}, VALUE, r"kernel must have 3 spatial axes and so 5 axes, got shape \(3, 2, 4, 6\)"),
    ({"kernel": zeros(1, 1, 4, 4, 6)}, VALUE, "the window does not fit on spatial axis 2: window 4"),
    ({"bias": zeros(4)}, VALUE, r"bias must have shape \(6,\)"),
    ({"feature_group_count": 3}, VALUE, GROUPS),
]  # fmt: skip

ANY_RANK: list[Any] = [
    ({"kernel": zeros(4, 6)}, VALUE, r"kernel must have at least 3 axes \(one window axis or more, in, out\), got shape \(4, 6\)"),
    ({"kernel": zeros(6)}, VALUE, r"kernel must have at least 3 axes .* got shape \(6,\)"),
]  # fmt: skip

TRANSPOSE: list[Any] = [
    ({"y": zeros(4, 6)}, VALUE, r"y must have 4 axes \(batch, 2 spatial, channels\) or, unbatched, 3, got shape \(4, 6\)"),
    ({"y": zeros(2, 4, 4, 5)}, VALUE, "kernel's last channels must be y's 5 channels, got 6; y has shape"),
    ({"kernel": zeros(4, 6)}, VALUE, r"kernel must have at least 3 axes .* got shape \(4, 6\)"),
    ({"kernel": zeros(3, 2, 4, 5)}, VALUE, r"kernel's last channels must be y's 6 channels, got 5; .* kernel \(3, 2, 4, 5\)"),
    ({"kernel": zeros(3, 0, 4, 6)}, VALUE, r"kernel must have at least one tap along each axis, got window \(3, 0\)"),
    ({"feature_group_count": 4}, VALUE, "feature_group_count=4 must divide the kernel's 6 output channels; y has shape"),
    ({"bias": zeros(6)}, VALUE, r"bias must have shape \(4,\), one a result channel, got \(6,\)"),
    ({"bias": zeros(8), "feature_group_count": 3}, VALUE, r"bias must have shape \(12,\), one a result channel, got \(8,\)"),
    ({"output_padding": 1}, VALUE, r"output_padding=\(1, 1\) must be at most 0 on spatial axis 0 \(stride 1, padding 'VALID'\)"),
    ({"output_padding": (1, 2), "strides": 2}, VALUE, r"output_padding=\(1, 2\) must be at most 1 on spatial axis 1"),
    ({"output_padding": 1, "strides": 2, "padding": "SAME"}, VALUE, r"output_padding=\(1, 1\) must be at most 0 .* 'SAME'"),
    ({"y": zeros(2, 0, 4, 6)}, VALUE, r"padding='VALID' leaves nothing of spatial axis 0: 0 places"),
    ({"padding": 3}, VALUE, r"padding=\(\(3, 3\), \(3, 3\)\) leaves nothing of spatial axis 0: 4 places .* give 0 elements"),
    ({"padding": (0, 4)}, VALUE, r"padding=\(\(0, 0\), \(4, 4\)\) leaves nothing of spatial axis 1: .* give -3 elements"),
    ({"y": Y.astype("float16")}, TYPE, "y and kernel and bias must have one dtype, got y float16, kernel float32, bias"),
    ({"bias": zeros(4, dtype=np.int32)}, TYPE, "y and kernel and bias must have one dtype, got .* bias int32"),
    ({"data_format": "channels_first"}, VALUE, r"kernel's last channels must be y's 4 channels, got 3; .*'channels_first'"),
]  # fmt: skip

KERNEL_GRAD: list[Any] = [
    ({"x": zeros(6, 4)}, VALUE, r"x must have 4 axes .* got shape \(6, 4\)"),
    ({"x": zeros(2, 6, 5, 3)}, VALUE, r"kernel_shape must have 3 input channels .* got 4; .* kernel_shape=\(3, 2, 4, 6\)"),
    ({"g": zeros(2, 4, 4)}, VALUE, r"g must have the shape that conv gives here, \(2, 4, 4, 6\), got \(2, 4, 4\); x has"),
    ({"g": zeros(2, 4, 3, 6)}, VALUE, r"g must have the shape that conv gives here, \(2, 4, 4, 6\), got \(2, 4, 3, 6\)"),
    ({"g": zeros(3, 4, 4, 6)}, VALUE, r"g must have the shape that conv gives here, \(2, 4, 4, 6\), got \(3, 4, 4, 6\)"),
    ({"g": zeros(2, 4, 4, 5)}, VALUE, r"g must have the shape that conv gives here, \(2, 4, 4, 6\), got \(2, 4, 4, 5\)"),
    ({"g": Y.astype(COMPLEX)}, TYPE, "x and g must have one dtype, got x float32, g complex64"),
    ({"kernel_shape": (4, 6)}, VALUE, r"kernel_shape must have at least 3 axes .* got shape \(4, 6\)"),
    ({"kernel_shape": ()}, VALUE, r"kernel_shape must have at least 3 axes .* got shape \(\)"),
    ({"kernel_shape": (3, 2, 2, 2, 4, 6)}, VALUE, r"x must have 6 axes .* got shape \(2, 6, 5, 4\)"),
    ({"kernel_shape": (3, 0, 4, 6)}, VALUE, r"kernel_shape must have at least one tap along each axis, got window \(3, 0\)"),
    ({"kernel_shape": (7, 2, 4, 6)}, VALUE, "the window does not fit on spatial axis 0: window 7"),
    ({"feature_group_count": 3}, VALUE, GROUPS),
    ({"kernel_shape": (3, 2, 1, 6), "feature_group_count": 4}, VALUE, "feature_group_count=4 must divide the kernel_shape's 6"),
    ({"strides": 2}, VALUE, r"g must have the shape that conv gives here, \(2, 2, 2, 6\), got \(2, 4, 4, 6\)"),
    ({"padding": -20}, VALUE, r"the window does not fit on spatial axis 0: .* padding \(-20, -20\)"),
    ({"padding": "EDGE", "input_dilation": 2}, VALUE, "padding='EDGE' takes values of the input, so input_dilation must be 1"),
]  # fmt: skip

INPUT_GRAD: list[Any] = [
    ({"g": zeros(4, 6)}, VALUE, r"g must have the shape that conv gives here, \(2, 4, 4, 6\), got \(4, 6\); input_shape="),
    ({"g": zeros(2, 3, 4, 6)}, VALUE, r"g must have the shape that conv gives here, \(2, 4, 4, 6\), got \(2, 3, 4, 6\)"),
    ({"g": Y.astype("int32")}, TYPE, "g and kernel must have one dtype, got g int32, kernel float32"),
    ({"kernel": zeros(4, 6)}, VALUE, r"kernel must have at least 3 axes .* got shape \(4, 6\)"),
    ({"kernel": zeros(3, 2, 3, 6)}, VALUE, r"kernel must have 4 input channels .* got 3; input_shape=\(2, 6, 5, 4\)"),
    ({"kernel": TALL}, VALUE, "the window does not fit on spatial axis 0: window 7"),
    ({"input_shape": (6, 4)}, VALUE, r"input_shape must have 4 axes \(batch, 2 spatial, channels\) or, unbatched, 3, got shape"),
    ({"input_shape": (2, 6, 5, 4, 1)}, VALUE, r"input_shape must have 4 axes .* got shape \(2, 6, 5, 4, 1\)"),
    ({"input_shape": (2, 6, 5, 3)}, VALUE, r"kernel must have 3 input channels .* got 4; input_shape=\(2, 6, 5, 3\)"),
    ({"input_shape": (6, 5, 4)}, VALUE, r"g must have the shape that conv gives here, \(4, 4, 6\), got \(2, 4, 4, 6\)"),
    ({"input_shape": (2, 0, 5, 4)}, VALUE, "the window does not fit on spatial axis 0: .* the input 0"),
    ({"feature_group_count": 3}, VALUE, GROUPS.replace(" shape", "")),
    ({"kernel_dilation": 2}, VALUE, r"g must have the shape that conv gives here, \(2, 2, 3, 6\)"),
]  # fmt: skip

BIAS_GRAD: list[Any] = [
    ({"g": zeros(6)}, VALUE, r"g must have at least 2 axes with data_format='channels_last', got shape \(6,\)"),
    ({"g": zeros()}, VALUE, r"g must have at least 2 axes with data_format='channels_last', got shape \(\)"),
    ({"g": zeros(2, 6), "data_format": "channels_first"}, VALUE, r"g must have at least 3 axes with data_format='channels_first'"),
]  # fmt: skip

# Poolings and patches.

POOLING: list[Any] = [
    ({"x": zeros(5, 3)}, VALUE, r"x must have 4 axes \(batch, 2 spatial, channels\) or, unbatched, 3, got shape \(5, 3\)"),
    ({"x": zeros(5, 3), "window_shape": 2}, VALUE, r"x must have at least 3 axes .* window_shape=2 is one integer, got shape \(5, 3\)"),
    ({"window_shape": (2,)}, VALUE, r"x must have 3 axes \(batch, 1 spatial, channels\) .* got shape \(2, 6, 5, 3\)"),
    ({"window_shape": (2,) * 4}, VALUE, r"x must have 6 axes .* got shape \(2, 6, 5, 3\)"),
    ({"window_shape": (2, 7)}, VALUE, "the window does not fit on spatial axis 1: window 7 with dilation 1 covers 7 elements"),
    ({"window_shape": 3, "window_dilation": 3}, VALUE, "the window does not fit on spatial axis 0: window 3 with dilation 3"),
    ({"padding": -3}, VALUE, r"the window does not fit on spatial axis 0: .* padding \(-3, -3\) has 0; the output would be empty"),
    ({"padding": "REFLECT", "x": IMAGE[:, :1]}, VALUE, r"padding='REFLECT' needs at least 2 elements along each axis, got \(1, 5\)"),
    ({"padding": "CIRCULAR", "x": IMAGE[:, :0]}, VALUE, "padding='CIRCULAR' needs at least 1 elements along each axis"),
]  # fmt: skip

ORDERED: list[Any] = [
    ({"x": IMAGE.astype(COMPLEX)}, TYPE, "x must have a real dtype.*, got complex64"),
]

INDICES: list[Any] = [
    (
        {"padding": "EDGE", "return_indices": True},
        VALUE,
        "return_indices=True needs padding that is no element .* got padding='EDGE'",
    ),
]

ADAPTIVE: list[Any] = [
    ({"x": zeros(5, 3)}, VALUE, r"x must have 4 axes .* got shape \(5, 3\)"),
    (
        {"x": zeros(5, 3), "output_shape": 1},
        VALUE,
        "x must have at least 3 axes .* output_shape=1 is one integer, got shape",
    ),
    ({"output_shape": (1,) * 4}, VALUE, r"x must have 6 axes .* got shape \(2, 6, 5, 3\)"),
    ({"x": IMAGE[:, :0]}, VALUE, r"x must have at least one element along each spatial axis, got shape \(2, 0, 5, 3\)"),
]

GLOBAL: list[Any] = [
    ({"x": zeros(5, 3)}, VALUE, r"x must have at least 3 axes \(batch, spatial, channels\), got shape \(5, 3\)"),
    ({"x": zeros()}, VALUE, r"x must have at least 3 axes \(batch, spatial, channels\), got shape \(\)"),
    (
        {"x": IMAGE[:, :, :0]},
        VALUE,
        r"x must have at least one element along each spatial axis, got shape \(2, 6, 0, 3\)",
    ),
]

PLACES = RIGHT["max_unpool"]["indices"]
UNPOOL: list[Any] = [
    ({"indices": IMAGE}, TYPE, "indices must be integers, got float32"),
    ({"indices": IMAGE.astype(COMPLEX)}, TYPE, "indices must be integers, got complex64"),
    ({"indices": PLACES[..., :2]}, VALUE, r"indices must have y's shape \(2, 6, 5, 3\), got \(2, 6, 5, 2\)"),
    ({"indices": PLACES - 2}, VALUE, r"indices must be from -1 to 71, elements of output_shape=\(9, 8\), got -2"),
    ({"indices": PLACES + 72}, VALUE, r"indices must be from -1 to 71, elements of output_shape=\(9, 8\), got 72"),
    ({"output_shape": (8,)}, VALUE, r"y must have 3 axes \(batch, 1 spatial, channels\) .* got shape \(2, 6, 5, 3\)"),
    ({"y": zeros(5, 3), "indices": zeros(5, 3, dtype=np.int32)}, VALUE, r"y must have 4 axes .* got shape \(5, 3\)"),
]  # fmt: skip

FOLD: list[Any] = [
    ({"columns": zeros(2, 4, 4, 12)}, VALUE, r"columns must have \(5, 4\) places, .* got shape \(2, 4, 4, 12\), data_format"),
    ({"columns": zeros(2, 5, 4, 10)}, VALUE, r"columns must have a multiple of 4 channels, .* got shape \(2, 5, 4, 10\)"),
    ({"columns": zeros(4, 12)}, VALUE, r"columns must have 4 axes .* got shape \(4, 12\)"),
    ({"columns": zeros(4, 12), "output_shape": 5, "window_shape": 2}, VALUE, "columns must have at least 3 axes .* got shape"),
    ({"output_shape": (6, 5, 4)}, VALUE, r"window_shape=\(2, 2\) must be one integer or 3 of them"),
    ({"output_shape": (1, 5)}, VALUE, "the window does not fit on spatial axis 0: window 2 .* the input 1"),
    ({"window_shape": (2, 2, 2)}, VALUE, r"window_shape=\(2, 2, 2\) must be one integer or 2 of them"),
    ({"strides": 2}, VALUE, r"columns must have \(3, 2\) places, what unfold gives for .* got shape \(2, 5, 4, 12\)"),
    ({"padding": "REFLECT", "output_shape": (1, 5)}, VALUE, "padding='REFLECT' needs at least 2 elements along each axis"),
]  # fmt: skip

POOLINGS = ("max_pool", "min_pool", "avg_pool", "sum_pool", "lp_pool")
TABLE = [
    (("conv", "conv2d"), CONV),
    (("conv1d",), CONV1D),
    (("conv3d",), CONV3D),
    (("conv",), ANY_RANK),
    (("conv_transpose",), TRANSPOSE),
    (("conv_kernel_grad",), KERNEL_GRAD),
    (("conv_input_grad",), INPUT_GRAD),
    (("conv_bias_grad",), BIAS_GRAD),
    ((*POOLINGS, "unfold"), POOLING),
    (("max_pool", "min_pool", "lp_pool", "adaptive_max_pool", "global_max_pool"), ORDERED),
    (("max_pool", "min_pool"), INDICES),
    (("adaptive_max_pool", "adaptive_avg_pool"), ADAPTIVE),
    (("global_max_pool", "global_avg_pool"), GLOBAL),
    (("max_unpool",), UNPOOL),
    (("fold",), FOLD),
]
DETAILS = [Wrong(operator, *row) for operators, rows in TABLE for operator in operators for row in rows]
