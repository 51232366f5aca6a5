"""What every test runs under: four virtual CPU devices, strict dtype promotion, the same drawn geometries each time.

`pytest` compiles as users' programs are compiled. `pytest --quick` has XLA optimise next to nothing, which is 3 to 5 times
faster and gives the same values; it leaves out what is marked `optimised`: tests of memory, of fusion and of large
layers, and the named cases once more as users run them. `make test` is `pytest --quick`, then `pytest -m optimised`.
"""

import os

# Both are read when jax starts, so they come first. JAX_PLATFORMS=cuda pytest ... runs the suite on a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

# Nearly all of the suite's time is compilation, and half of that is XLA's emitter of fused loops.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="compile without optimising; leave out what is `optimised`")


def pytest_configure(config):
    if config.getoption(
        "quick"
    ):  # before jax's backend starts: it reads the flags once; a test's processes have them too
        os.environ["XLA_FLAGS"] = " ".join((os.environ["XLA_FLAGS"], *QUICK))


def pytest_collection_modifyitems(config, items):
    if config.getoption("quick"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("optimised")])
        items[:] = [item for item in items if not item.get_closest_marker("optimised")]


# A compiled function takes seconds on a busy machine, so no deadline; a fixture such as x64 may serve all examples.
hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
# New geometries at every run, remembered where they fail: HYPOTHESIS_PROFILE=explore pytest ...
hypothesis.settings.register_profile("explore", hypothesis.settings.get_profile("ci"), derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def x64():
    """float64, int64 and complex128, for one test; the rest of the suite runs as users do, without."""
    with jax.enable_x64(True):
        yield
