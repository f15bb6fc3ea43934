"""For arguments of types that the checks of all tests would refuse first."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Types are not checked before a function looks itself, as for who calls it outside of tests."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
