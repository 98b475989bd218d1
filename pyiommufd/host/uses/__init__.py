"""What the host is doing with a device: the reasons not to take it away."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from pyiommufd.errors import NEVER_FORCED, Refusal
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.sriov import has_virtual_functions
from pyiommufd.host.uses.display import display_refusals, displays
from pyiommufd.host.uses.functions import function_refusals
from pyiommufd.host.uses.network import interfaces, is_elsewhere, network_refusals
from pyiommufd.host.uses.nodes import PARENTLESS, node_refusals
from pyiommufd.host.uses.snapshot import MachineSnapshot
from pyiommufd.host.uses.storage import blocks, hidden_refusals, shared_nodes, storage_refusals
from pyiommufd.iterables import iterate
from pyiommufd.nearest import did_you_mean

KINDS = (
    "root",
    "mounted",
    "swap",
    "md",
    "dm",
    "default-route",
    "route",
    "address",
    "bond",
    "bridge",
    "vfs",
    "boot-display",
    "held",
    "unseen",
    "noiommu",
    "isolated-msi",
    "reserved",
    "cdev",
    NEVER_FORCED,
)
"""The kinds of refusals; the last is a claim's own."""

FORCIBLE = tuple(kind for kind in KINDS if kind != NEVER_FORCED)
"""Those that ``force`` may name."""

_USB = 0x0C03
"""The class of USB controllers, whose network interfaces may be in another namespace."""

# Drivers whose devices may be in use without any sign below them in sysfs or in these classes.
_HARD_TO_SEE = frozenset({"virtio-pci", "nvidia", *PARENTLESS})

_USED_BY = ("block", "net", "nvme", "drm", "graphics", "fc_host", "dma")


def forced(kinds: object) -> frozenset[str]:
    """The kinds of refusals that a caller overrides.

    Raises:
        TypeError: They are not names, or one name and no list.
        ValueError: One of them is not a kind, or cannot be forced.
    """
    expected = 'force names kinds of refusals, as in ["mounted"]'
    if isinstance(kinds, str | bytes) or not isinstance(kinds, Iterable):
        raise TypeError(f"{expected}, not {kinds!r}")
    names = [*iterate(kinds, expected)]
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"{expected}, and has no {type(wrong[0]).__name__}")
    if unknown := sorted(set(names).difference(FORCIBLE)):
        near = did_you_mean(unknown[0], FORCIBLE)
        raise ValueError(f"force names {', '.join(unknown)}; what can be forced is {', '.join(FORCIBLE)}{near}")
    return frozenset(names)


def refusals(*devices: HostDevice) -> tuple[Refusal, ...]:
    """Every use of the devices that a claim would break, and what could not be seen of them: kind (`KINDS`) and reason.

    ``root``, ``mounted``, ``swap``: it holds the filesystem of ``/``, another one that is mounted, in whatever mount
    namespace, or a swap area; also a filesystem that a virtual machine has from its host, by 9p or virtiofs. ``md``,
    ``dm``: a disk or partition is a member of a RAID array, or under a device of device mapper (LVM, encryption,
    multipath). ``default-route``, ``route``, ``address``: a route that somebody has made, in whatever table, leaves by
    an interface of it, or one that is up has an address that is not link-local. ``bond``, ``bridge``: an interface is
    in one. ``vfs``: virtual functions of it are on a driver, or a device that goes away with it is on vfio's.
    ``boot-display``: the host's console is to be seen on it, or may be. ``held``: a process, or the kernel for itself,
    has one of its nodes open, or its registers in sysfs; the kernel has a DMA channel of it in use; an interface is in
    another network namespace, has a packet or AF_XDP socket, an XDP program, netconsole or a PPPoE session, or is a CAN
    that is up; or a disk is served to other machines, by NVMe over Fabrics or as a SCSI target, or by a Fibre Channel
    port of it. ``unseen``: whether there is such a use cannot be seen by this process, as in a container; the reason
    says what was not seen, and from where to look. Each is looked up through all layers: partitions, device mapper, md
    and loop devices, bonds, bridges and VLANs; and what other network namespaces have above an interface, such as a
    container's macvlan.

    An NVMe, SCSI or other disk that seems unused is opened for a moment, exclusively and for reading, since that alone
    shows some uses (ZFS's, say); by a node of its own below /dev where there is none. Who holds a node of vfio's is not
    among these; see `pyiommufd.host.holders.holders`.

    Raises:
        OSError: The kernel does not say what its network is doing.
    """
    return refusals_by(MachineSnapshot(thorough=True), devices)


def refusals_by(snapshot: MachineSnapshot, devices: Iterable[HostDevice]) -> tuple[Refusal, ...]:
    """The same, by a look at the machine that others go by as well.

    Raises:
        OSError: As for `refusals`.
    """
    return tuple(refusal for device in devices for refusal in _refusals(device, snapshot))


def in_use(devices: Iterable[HostDevice]) -> dict[HostDevice, frozenset[str]]:
    """Those of these devices that `refusals` has something about, with the kinds; found quicker.

    What only an exclusive open or a look at all processes' mappings shows is not seen.

    Raises:
        OSError: As for `refusals`.
    """
    devices, snapshot = list(devices), MachineSnapshot(thorough=False)
    found = dict.fromkeys(devices if snapshot.unseen else (), frozenset({"unseen"}))
    for device in _suspects(devices, snapshot):
        if kinds := frozenset(refusal.kind for refusal in _refusals(device, snapshot)):
            found[device] = kinds
    return found


def _refusals(device: HostDevice, snapshot: MachineSnapshot) -> tuple[Refusal, ...]:
    disks, cards = blocks(device, snapshot), interfaces(device, snapshot)
    above = [block.folder for block in disks.values()] + [interface.folder for interface in cards.values()]
    above += shared_nodes(snapshot, device)
    found = (
        *storage_refusals(device, snapshot, disks),
        *network_refusals(device, snapshot, cards),
        *function_refusals(device, snapshot),
        *display_refusals(device, snapshot),
        *node_refusals(device, snapshot, above),
        *(
            Refusal(device.name, "unseen", f"what {who} do with it is not seen: look {where}")
            for who, where in snapshot.unseen
        ),
    )
    return (*found, *hidden_refusals(device, snapshot, disks)) if snapshot.thorough else found


def _suspects(devices: list[HostDevice], snapshot: MachineSnapshot) -> set[HostDevice]:
    """The devices that are worth the full look, which goes through all below a device.

    On a large machine most functions have nothing that could be in use.
    """
    by_path = {str(device.sys_path): device for device in devices}
    paths = list(snapshot.open_files)
    for kind in _USED_BY:
        folder = sysfs.SYS / "class" / kind
        try:
            paths += [os.path.realpath(folder / name) for name in os.listdir(folder)]  # noqa: PTH208 (hot)
        except OSError:
            continue
    found = displays(devices)
    # Only a look at the device itself shows these.
    for device in devices:
        if (
            device.driver in _HARD_TO_SEE
            or has_virtual_functions(device.sys_path)
            or (os.access(f"{device.sys_path}/net", os.F_OK) and is_elsewhere([device.sys_path / "net"]))
            or (device.class_code or 0) >> 8 == _USB
        ):
            found.add(device)
    # A use of a device also counts for the device it is removed with; being on vfio counts for the latter only.
    paths += [f"{device.sys_path}/" for device in found]
    given = {f"{str(device.sys_path).rpartition('/')[0]}/" for device in devices if device.on_vfio}
    above = {device for path in given for device in _above(path, by_path) if not device.is_bridge}
    return above.union(device for path in paths for device in _above(path, by_path))


def _above(path: str, by_path: dict[str, HostDevice]) -> Iterator[HostDevice]:
    """The device that a folder is below of, and the functions that this one goes with in turn."""
    nearest = True
    while path := path.rpartition("/")[0]:
        device = by_path.get(path)
        if device is not None:
            if nearest or not device.is_bridge:
                yield device
            nearest = False
