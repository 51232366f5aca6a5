"""The benchmark of every layer against stock JAX and PyTorch: `python -m experiments.bench --help`."""
