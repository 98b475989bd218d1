"""What is public: every type that it speaks of can be imported, and no name is public by accident."""

from __future__ import annotations

import inspect

from mypy.nodes import TypeInfo

import pyiommufd
from pyiommufd import errors
from tests.unit.public_names import NAMES, exported, is_internal, public_names, types_spoken_of


def test_types_that_are_spoken_of_can_be_imported() -> None:
    there = {node.fullname for node in exported().values()}
    missing = {name: sorted(where) for name, where in types_spoken_of().items() if name not in there}
    assert not missing


def test_exceptions_can_be_imported() -> None:
    ours = {name for name, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, Exception)}
    assert ours <= set(pyiommufd.__all__)


def test_names_are_those_of_the_list() -> None:
    """After a change that is meant to be public: ``python -m tests.unit.public_names``, and look at the difference."""
    names = {name for name in public_names() if not is_internal(name)}
    listed = set(NAMES.read_text().splitlines())
    assert (sorted(names - listed), sorted(listed - names)) == ([], [])


def test_internal_names_are_not_public() -> None:
    assert [name for name in public_names() if is_internal(name)] == []


def test_lookup_sees_what_there_is() -> None:
    """Types by assignment alone, and properties with their setters: without these the tests above would pass too."""
    spoken = types_spoken_of()
    assert isinstance(exported()["Region"], TypeInfo)
    assert "Region.flags" in spoken["pyiommufd.kernel.device.region_bytes.RegionFlag"]
    assert "ConfigSpace.command" in spoken["pyiommufd.kernel.device.config_space.Command"]
    assert "find_device" in spoken["pyiommufd.host.discovery.devices.HostDevice"]
    assert {"HostDevice.name", "Device.bus_master", "VMM.command"} <= set(public_names())
