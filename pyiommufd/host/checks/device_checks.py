"""Checks of the devices: what stands in the way of some of them. What each looks at is `Finding.check`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pyiommufd.host import sysfs
from pyiommufd.host.checks.bindable import firmware_regions
from pyiommufd.host.checks.finding import Finding, Machine, State
from pyiommufd.host.limits import CAP_SYS_RAWIO, has_capability


def reserved(machine: Machine) -> Iterator[Finding]:
    """Firmware's one-to-one mappings (RMRR, IVMD) make the kernel refuse a whole group."""
    found = False
    for group in machine.iommu_groups:
        regions = firmware_regions(group.id)
        if not regions:
            continue
        found = True
        yield Finding(
            "reserved",
            State.WARNING,
            f"firmware keeps memory mapped for IOMMU group {group.id}: its devices cannot be bound",
            f"{regions} (direct)",
            "see whether the firmware can release it (a device used for management, or as the boot display)",
            tuple(device.name for device in group.devices),
        )
    if machine.iommu_groups and not found:
        yield Finding("reserved", State.OK, "firmware keeps no device for itself", "no reserved region of type direct")


def permissions(machine: Machine) -> Iterator[Finding]:
    """Whether this user may open the nodes."""
    nodes = [(machine.dev / "iommu", "", False)]
    nodes += [(Path(one.vfio_cdev), one.name, one.without_iommu) for one in machine.devices if one.vfio_cdev]
    checked = False
    for node, name, privileged in nodes:
        try:
            status = node.stat()
        except OSError:
            if name:
                yield Finding(
                    "permissions",
                    State.MISSING,
                    f"{node} is missing though the kernel has the device",
                    f"{name} is on a vfio driver",
                    "in a container, pass /dev/vfio/devices in; else see that udev or devtmpfs is at work",
                    (name,),
                )
            continue
        checked = True
        may_open = os.access(node, os.R_OK | os.W_OK, effective_ids=True)
        mode = f"mode {status.st_mode & 0o7777:04o}, owner {status.st_uid}, group {status.st_gid}"
        if privileged and not has_capability(CAP_SYS_RAWIO):
            # Whoever may open it by its mode is refused all the same.
            yield Finding(
                "permissions",
                State.MISSING,
                f"user {os.geteuid()} may not open {node}, as no IOMMU covers {name}",
                f"it takes CAP_SYS_RAWIO, which this process does not have{'' if may_open else f'; {mode}'}",
                "run as root, or with that capability" + ("" if may_open else " and as a user who may open the node"),
                (name,),
            )
            checked = False
        elif not may_open:
            rule = 'KERNEL=="iommu", SUBSYSTEM=="misc"' if not name else 'SUBSYSTEM=="vfio-dev"'
            yield Finding(
                "permissions",
                State.MISSING,
                f"user {os.geteuid()} may not open {node}",
                mode,
                f'run as root, or by a udev rule: {rule}, GROUP="GROUP", MODE="0660"',
                (name,) if name else (),
            )
            checked = False
    if checked:
        yield Finding("permissions", State.OK, f"user {os.geteuid()} may open the nodes", str(machine.dev / "iommu"))


def d3cold(machine: Machine) -> Iterator[Finding]:
    """Whether devices lose power while idle."""
    asleep, allowed = [], []
    idle = sysfs.read(sysfs.SYS / "module/vfio_pci/parameters/disable_idle_d3") in ("N", "0")
    for device in machine.devices:
        if device.subsystem != "pci" or device.is_bridge:
            continue
        if sysfs.read(device.sys_path / "power_state") == "D3cold":
            asleep.append(device.name)
        elif device.on_vfio and idle and sysfs.read(device.sys_path / "d3cold_allowed") == "1":
            allowed.append(device.name)
    if asleep:
        yield Finding(
            "d3cold",
            State.WARNING,
            "some devices are without power; not all come back from it",
            f"power_state is D3cold: {', '.join(asleep)}",
            "where one does not: echo 0 > /sys/bus/pci/devices/NAME/d3cold_allowed, or vfio_pci.disable_idle_d3=1",
            tuple(asleep),
        )
    if allowed:
        yield Finding(
            "d3cold",
            State.WARNING,
            "devices on vfio lose power while nobody uses them; not all come back from it",
            "d3cold_allowed is 1, vfio_pci.disable_idle_d3 is N",
            "where one does not: echo 0 > /sys/bus/pci/devices/NAME/d3cold_allowed, or vfio_pci.disable_idle_d3=1",
            tuple(allowed),
        )
    if not asleep and not allowed:
        yield Finding("d3cold", State.OK, "no device on vfio loses power while idle", "power_state, d3cold_allowed")


def reset(machine: Machine) -> Iterator[Finding]:
    """Whether devices can be reset between users."""
    without = tuple(
        device.name
        for device in machine.devices
        if device.subsystem == "pci"
        and device.group_id is not None
        and not device.is_bridge
        and not device.is_host_bridge
        and not sysfs.read(device.sys_path / "reset_method")
    )
    if without:
        yield Finding(
            "reset",
            State.WARNING,
            "some devices cannot be reset: state left by one VM is visible to the next",
            f"no reset_method: {', '.join(without)}",
            "give such a device to one user only, or reboot in between",
            without,
        )
    elif machine.iommu_groups:
        yield Finding("reset", State.OK, "every device can be reset", "reset_method")


def mixed_group(machine: Machine) -> Iterator[Finding]:
    """Whether a group is half on vfio and half on host drivers."""
    mixed = False
    for group in machine.iommu_groups:
        given = [device for device in group.devices if device.on_vfio]
        if given and group.blockers:
            mixed = True
            yield Finding(
                "mixed-group",
                State.WARNING,
                f"IOMMU group {group.id} is only partly on vfio: none of it can be bound",
                f"on vfio: {', '.join(map(str, given))}; on host drivers: "
                + ", ".join(f"{device.name} ({device.driver})" for device in group.blockers),
                f"claim the whole group: pyiommufd claim {given[0].name}",
                tuple(device.name for device in group.devices),
            )
    if machine.iommu_groups and not mixed:
        yield Finding("mixed-group", State.OK, "no group is half on vfio and half on host drivers")
