"""Ways of computing a product, one file each, on channels_last arrays; choose.py picks one. No calculus here.

Two functions cover the three products, since the input gradient is the convolution of g with the turned kernel along
`geometry.for_input_grad()`:
    convolve(x, w, geometry, precision, dtype)       y[n, p, o]  = sum over t, c of x[n, a, c] w[t, c, o]
    kernel_grad(x, g, geometry, precision, dtype)    dw[t, c, o] = sum over n, p of x[n, a, c] g[n, p, o]
`geometry` comes cropped (no negative pads); operands have one dtype; `dtype` is that of the sums and the result.
"""
