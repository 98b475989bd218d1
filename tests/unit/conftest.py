"""What holds for every unit test."""

from __future__ import annotations

from hypothesis import settings

from tests.fake_sysfs import fake as fake

# How long an example takes says how busy the machine is.
settings.register_profile("pyiommufd", deadline=None, print_blob=True)
settings.load_profile("pyiommufd")
