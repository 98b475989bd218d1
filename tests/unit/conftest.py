"""What holds for every unit test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

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
