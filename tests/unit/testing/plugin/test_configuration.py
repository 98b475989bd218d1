"""Which guest a test wants, and whether this is it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyiommufd.testing import Edu, Guest, RawDevice
from pyiommufd.testing.guest.guest import CONFIGURATION_VARIABLE
from pyiommufd.testing.plugin.configuration import GuestConfiguration, misfits


def test_equal_wishes_are_one_configuration() -> None:
    default = GuestConfiguration()
    first = default.changed({"devices": [Edu(), "edu"], "iommu": "intel"})
    assert first == default.changed({"devices": (Edu(), RawDevice("edu"))})
    assert hash(first) == hash(default.changed({"devices": (Edu(), RawDevice("edu"))}))
    assert first != default
    assert default.changed({"kernel": Path("/k")}).kernel == "/k"


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"iomu": "intel"}, "there is only iommu, kernel"),
        ({"iommu": "arm"}, "choose one of intel"),
        ({"devices": "edu"}, r"guest\(devices='edu'\): a list is wanted"),
        ({"kernel_arguments": 3}, "a list is wanted"),
        ({"memory": 1}, "64 or more"),
    ],
)
def test_wrong_wishes(wishes: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        GuestConfiguration().changed(wishes)


def test_misfits() -> None:
    environment = {CONFIGURATION_VARIABLE: Guest(iommu="intel", devices=[Edu()], kernel="/k").description}
    fitting = {"iommu": "intel", "devices": [Edu()], "kernel": "/k", "memory": 1024}
    assert misfits(fitting, environment) == []
    assert misfits({}, {}) == []
    assert misfits({"cpus": 2}, {}) == ["this machine is not one of the project's guests"]
    found = misfits({"iommu": "amd", "devices": [], "kernel": "/other", "cpus": 8}, environment)
    assert found == [
        "the IOMMU is intel, not amd",
        "the devices differ",
        "the kernel is /k, not /other",
        "cpus is 2, not 8",
    ]
    assert json.loads(environment[CONFIGURATION_VARIABLE])["iommu"] == "intel"
