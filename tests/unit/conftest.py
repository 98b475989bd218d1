"""What holds for every unit test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from pyiommufd.testing import option_names
from tests.fake_sysfs import fake as fake

# The same examples in every run; and how long one takes says how busy the machine is.
settings.register_profile(
    "pyiommufd",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pyiommufd")


@pytest.fixture(autouse=True)
def speaking_of_programs() -> Iterator[None]:
    """A command that a test runs in this process says where its user is; the next test's is here again."""
    form = option_names._form
    yield
    option_names._form = form
