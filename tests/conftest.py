"""What every test runs under: four virtual CPU devices, strict dtype promotion, the same drawn geometries each time."""

import os

# Both are read when jax starts, so they come first. JAX_PLATFORMS=cuda pytest ... runs the suite on a GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")

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
