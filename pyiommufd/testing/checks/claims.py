"""Devices for a test: found by what they are, claimed while it lasts, given back at its end."""

from __future__ import annotations

import os

from pyiommufd.errors import CloseError, IOMMUFDError
from pyiommufd.host.claims import journal
from pyiommufd.host.claims.claim import Claim
from pyiommufd.host.claims.plan import plan_claim
from pyiommufd.host.discovery.devices import HostDevice, list_devices, list_groups
from pyiommufd.host.discovery.groups import Group, is_safe


class Claims:
    """The claims of a test, by IOMMU group. Each is made when it is first needed."""

    def __init__(self) -> None:
        self._claims: dict[int, Claim] = {}

    def take(self, device: HostDevice) -> None:
        """Have a device, and with it its whole group, on its vfio driver; does nothing where this process has it.

        Raises:
            ClaimRefusedError: The host uses it, or another process has claimed it.
            ClaimError: It has no group, or the caller is not root.
        """
        if device.group_id in self._claims or _claimed_here(device):
            return
        claim = plan_claim(device).apply()
        for group in claim.plan.groups:
            self._claims[group.id] = claim

    def release(self) -> None:
        """Give everything back, the last first.

        Raises:
            CloseError: Something could not be given back; the rest has been.
        """
        errors: list[BaseException] = []
        claims = list(dict.fromkeys(self._claims.values()))
        self._claims.clear()
        for claim in reversed(claims):
            try:
                claim.release()
            except (OSError, IOMMUFDError) as error:
                errors += error.errors if isinstance(error, CloseError) else [error]
        if errors:
            raise CloseError("not everything that the test had claimed could be given back:", tuple(errors))


def _claimed_here(device: HostDevice) -> bool:
    """Whether a claim of this process has it already, such as one that a wider fixture keeps."""
    pid = os.getpid()
    return device.on_vfio and any(
        record.pid == pid and any(before.name == device.name for before in record.devices)
        for record in journal.records()
    )


def devices_by_id(vendor: int, device: int) -> list[HostDevice]:
    """The PCI devices of that vendor and device id: unused ones first, then those that concern the fewest others.

    Args:
        vendor: Such as 0x1234.
        device: Such as 0x11e8.
    """
    found = [one for one in list_devices("pci") if (one.vendor_id, one.device_id) == (vendor, device)]

    def cost(one: HostDevice) -> tuple[bool, int]:
        group = one.group
        return not unused(one), 0 if group is None else len(group.devices)

    return sorted(found, key=cost)


def unused(device: HostDevice) -> bool:
    """Whether no host driver has it, and it is no part of the chipset either (class 06xx, bridges of all kinds)."""
    return is_safe(device) and not device.is_bridge and (device.class_code or 0) >> 16 != 0x06


def endpoints(group: Group) -> tuple[HostDevice, ...]:
    """The members of a group that a vfio driver can take: all but bridges."""
    return tuple(device for device in group.devices if not device.is_bridge)


def shared_groups() -> list[Group]:
    """The groups with several unused members, the smallest first.

    Groups that only host drivers use are left out: no test has named their devices, and the machine may depend on
    them (a guest's file systems, say).
    """
    groups = [group for group in list_groups() if sum(map(unused, group.devices)) > 1]
    return sorted(groups, key=lambda group: len(group.devices))
