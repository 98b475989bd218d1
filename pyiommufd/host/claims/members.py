"""The members of a group that is claimed: those that are left as they are, and those that go away with another."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.groups import is_safe
from pyiommufd.host.uses.folders import is_removed_with


def is_left_as_is(device: HostDevice, wanted: bool) -> bool:
    """Whether a claim leaves this member of a group as it is."""
    if device.on_vfio:
        return True
    if device.is_bridge:
        return is_safe(device) and not wanted
    if device.is_host_bridge and device.driver is None:
        return not wanted  # no reset of its neighbours touches it
    # pci-stub is where somebody has put it on purpose; a driverless device goes along, since a hot reset
    # wants every device of its set on a vfio driver.
    return device.driver == "pci-stub" and not wanted


def parents_among(members: Iterable[HostDevice], wanted: Collection[HostDevice] = ()) -> dict[HostDevice, HostDevice]:
    """Of devices that are claimed together, those that go away with another of these, each with the uppermost such.

    Args:
        members: The devices, such as a whole group.
        wanted: Those that the claim names; see `is_left_as_is`.
    """
    by_path = {str(device.sys_path): device for device in members}
    # Nearly all members are as far from the top as the others, and none is below another.
    heads = {path: device for path, device in by_path.items() if device.driver is not None and not device.is_bridge}
    depth = min((path.count("/") for path in heads), default=0)
    found = {}
    for path, device in by_path.items() if heads else ():
        for above in _above(path, heads) if path.count("/") > depth else ():
            if is_removed_with(device, above) and not is_left_as_is(above, above in wanted):
                found[device] = above
    return found


def _above(path: str, by_path: Mapping[str, HostDevice]) -> Iterator[HostDevice]:
    while path := path.rpartition("/")[0]:
        if path in by_path:
            yield by_path[path]
