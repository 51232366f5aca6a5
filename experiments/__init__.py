"""Training runs and benchmarks; each is started with `python -m experiments.NAME` and explains itself with --help."""
