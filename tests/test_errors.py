"""Wrong arguments: the error names the function, the argument, its value and what was expected.

It comes from jconv, before jax sees anything. The cases: tests/wrong.py and tests/wrong_details.py.
"""

import collections
import inspect
import re
import traceback

import jax
import pytest

import jconv
from tests.wrong import RIGHT, Wrong, everywhere
from tests.wrong_details import DETAILS

CASES = [case for operator in RIGHT for case in everywhere(operator)] + DETAILS


@pytest.fixture
def whole_tracebacks():
    """jax cuts its own frames out of tracebacks, which would hide what is looked for."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


@pytest.mark.usefixtures("whole_tracebacks")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_wrong_arguments(case: Wrong):
    with pytest.raises(case.error) as raised:
        case.call()
    error = raised.value
    assert type(error) is case.error  # and no subclass, such as jax.errors have
    assert re.match(f"{case.operator}: {case.match}", str(error)), str(error)
    # From the public function on, no frame of jax; nor in an exception that this one came from.
    files = [str(frame.path) for frame in raised.traceback]
    ours = next(i for i, frame in enumerate(raised.traceback) if frame.name == case.operator)
    assert not [file for file in files[ours:] if "jax/_src" in file]
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    assert len(traceback.format_exception_only(error)) == 1  # one line


@pytest.mark.parametrize("operator", RIGHT)
def test_the_right_call_is_right(operator):
    Wrong(operator, {}, ValueError, "").call()


def test_every_operator_and_every_argument_has_cases():
    modules = ("convolution", "pooling", "adaptive", "patches")
    public = {name: getattr(getattr(jconv, name), "__module__", "") for name in jconv.__all__}
    assert set(RIGHT) == {name for name, module in public.items() if module.removeprefix("jconv.") in modules}
    seen = collections.Counter((case.operator, name) for case in CASES for name in case.arguments)
    for operator in RIGHT:
        for argument in inspect.signature(getattr(jconv, operator)).parameters:
            assert seen[operator, argument] >= 3, f"{operator}: {argument}"
    assert len(CASES) >= 200


def test_a_wide_result_is_asked_for_anew_when_x64_changes():
    x, kernel = RIGHT["conv"]["x"], RIGHT["conv"]["kernel"]
    with jax.enable_x64(True):
        assert jconv.conv(x, kernel, preferred_element_type="float64").dtype == "float64"
    with pytest.raises(ValueError, match="conv: preferred_element_type='float64' must have at most 32 bits"):
        jconv.conv(x, kernel, preferred_element_type="float64")
    assert jconv.conv(x, kernel, preferred_element_type=float).dtype == "float32"  # Python's float: JAX's default
