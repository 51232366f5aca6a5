"""Whole models, a training step in stock JAX, accelerated, and in PyTorch: `python -m experiments.models --help`."""
