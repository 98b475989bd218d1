"""What the shell completes arguments with: names that this machine has now.

All are what click takes as a parameter's ``shell_complete``. They look at names first: a machine may have thousands of
devices, and a user waits.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator

import click
from click.shell_completion import CompletionItem

from pyiommufd.errors import DeviceNotFoundError
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice, from_sys_path
from pyiommufd.host.discovery.lookup import CLASSES, SUBSYSTEMS, can_be_bound, device_folders
from pyiommufd.printable import printable

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

_DESCRIBED = 100
"""How many devices are described at most: no screen shows more, and to describe one takes a dozen reads."""


_IDS_BEGUN = re.compile(r"[0-9a-f]{4}(?::[0-9a-f]{0,4})?")


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files; the shell itself lists them."""
    del ctx, param
    return [CompletionItem(incomplete, type="file")]


def one_of(names: Callable[[], Iterable[str]]) -> Completer:
    """Some of these names, which are asked for when they are wanted."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        del ctx, param
        return [CompletionItem(name) for name in sorted(set(names())) if name.startswith(incomplete)]

    return complete


def _devices_that(fits: Callable[[str], bool], wanted: Callable[[HostDevice], bool] = bool) -> Completer:
    """Devices, by all that their names are: addresses, interfaces, disks, paths, ids that one device alone has.

    Args:
        fits: Whether the device in this folder of sysfs is of use there.
        wanted: The same, of a device that has been read; not asked where there are too many to describe.
    """

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if "/" in incomplete:
            return files(ctx, param, incomplete)
        typed = incomplete.lower()
        named = [*_devices(typed), *_kernel_names(incomplete)]
        if not named and _IDS_BEGUN.fullmatch(typed):
            by_ids = _folders_by_ids()
            named = [(ids, by_ids[ids][0]) for ids in sorted(by_ids) if len(by_ids[ids]) == 1 and ids.startswith(typed)]
        return _described([(name, folder) for name, folder in named if fits(folder)], wanted)

    return complete


def _devices(typed: str) -> Iterator[tuple[str, str]]:
    for bus in SUBSYSTEMS:
        for name in _listed(f"bus/{bus}/devices"):
            folder = f"{sysfs.SYS}/bus/{bus}/devices/{name}"
            if bus != "pci" and not can_be_bound(folder):
                continue
            spellings = _spellings(name, typed) if bus == "pci" else (name,)
            if found := next((text for text in spellings if text.startswith(typed)), None):
                yield found, folder


def _spellings(address: str, typed: str) -> Iterator[str]:
    """A PCI address in the ways that it can be written, the usual ones first; libvirt's where that is begun."""
    numbers = re.split("[:.]", address)
    if typed.startswith("pci"):
        yield f"pci_{'_'.join(numbers)}"
        return
    domain, bus, slot, function = ((number, f"{int(number, 16):x}") for number in numbers)
    for before in (f"{domain[0]}:", "", f"{domain[1]}:"):
        for parts in itertools.product(bus, slot):
            yield f"{before}{':'.join(parts)}.{function[0]}"


def _kernel_names(typed: str) -> Iterator[tuple[str, str]]:
    # Without a letter typed, those that an administrator knows best.
    for kind in [f"class/{name}" for name in CLASSES] if typed else ["class/net", "block"]:
        for name in _listed(kind):
            if name.startswith(typed):
                folders = device_folders(os.path.realpath(f"{sysfs.SYS}/{kind}/{name}").rpartition("/")[0])
                if len(folders) == 1:
                    yield name, folders[0]


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(sysfs.SYS / folder))  # noqa: PTH208
    except OSError:
        return []


def _described(found: list[tuple[str, str]], wanted: Callable[[HostDevice], bool] = bool) -> list[CompletionItem]:
    if len(found) > _DESCRIBED:
        return [CompletionItem(name) for name, _ in found]
    from pyiommufd.host.discovery.pci_ids import pci_ids

    items = []
    for name, folder in found:
        try:
            device = from_sys_path(sysfs.SYS / folder)
        except DeviceNotFoundError:
            continue  # unplugged since
        if not wanted(device):
            continue
        items.append(CompletionItem(name, help=printable(pci_ids().describe(device) or device.driver or "") or None))
    return items


def _is_no_bridge(folder: str) -> bool:
    return not os.path.exists(f"{folder}/secondary_bus_number")  # noqa: PTH110


def _is_mediated(folder: str) -> bool:
    return os.path.exists(f"{folder}/mdev_type")  # noqa: PTH110


def _is_no_host_bridge(device: HostDevice) -> bool:
    return device.on_vfio or not device.is_host_bridge


def _is_off_host_driver(folder: str) -> bool:
    on_vfio = os.path.isdir(f"{folder}/vfio-dev")  # noqa: PTH112
    if _is_mediated(folder):
        return False
    return (on_vfio or _driver_of(folder) in ("none", "pci-stub")) and _is_no_bridge(folder)


def _driver_of(folder: str) -> str:
    return sysfs.link_name(f"{folder}/driver") or "none"


devices = _devices_that(bool)
"""All devices."""

claimable = _devices_that(_is_no_bridge, _is_no_host_bridge)
"""Those that a claim takes, in use or not: it says what the host does with one, and how that is overridden."""

_grouped = _devices_that(lambda folder: os.path.exists(f"{folder}/iommu_group"))  # noqa: PTH110

strays = _devices_that(_is_off_host_driver, _is_no_host_bridge)
"""Those that ``rebind`` is for: on pci-stub, a vfio driver or none."""

physical_functions = _devices_that(lambda folder: os.path.exists(f"{folder}/sriov_totalvfs"))  # noqa: PTH110
"""Those that can have virtual functions."""

mdevs = _devices_that(_is_mediated)
"""The mediated devices."""


@one_of
def mdev_parents() -> Iterable[str]:
    """The devices that make mediated ones."""
    return _listed("class/mdev_bus")


def mdev_types(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The types of mediated devices that the parent offers that stands before."""
    parent = ctx.params.get("parent") or ""
    return one_of(lambda: _listed(f"class/mdev_bus/{parent}/mdev_supported_types"))(ctx, param, incomplete)


def ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """``vendor:device`` of the PCI devices that are there, each once."""
    del ctx, param
    folders = _folders_by_ids()
    return _described([(text, folders[text][0]) for text in sorted(folders) if text.startswith(incomplete.lower())])


def _folders_by_ids() -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for name in _listed("bus/pci/devices"):
        folder = f"{sysfs.SYS}/bus/pci/devices/{name}"
        vendor, device = sysfs.number(f"{folder}/vendor", 16), sysfs.number(f"{folder}/device", 16)
        if vendor is not None and device is not None:
            folders.setdefault(f"{vendor:04x}:{device:04x}", []).append(folder)
    return folders


@one_of
def drivers() -> Iterator[str]:
    """The drivers that devices are on."""
    return (_driver_of(folder) for _, folder in _devices(""))


@one_of
def vfio_drivers() -> Iterable[str]:
    """The vfio drivers of this machine."""
    from pyiommufd.host.drivers import GENERAL, vfio_drivers

    return (driver for bus in GENERAL for driver in vfio_drivers(bus).values())


@one_of
def _group_numbers() -> list[str]:
    from pyiommufd.host.discovery.groups import groups_folder

    return _listed(str(groups_folder()))


def groups(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The numbers of the IOMMU groups, and what names a device in one."""
    numbers = _group_numbers(ctx, param, incomplete)
    return numbers + _grouped(ctx, param, incomplete) if incomplete else numbers


@one_of
def accounts() -> Iterable[str]:
    """The names of this machine's accounts."""
    import pwd

    return (entry.pw_name for entry in pwd.getpwall())


@one_of
def claimed() -> Iterator[str]:
    """The devices that ``release`` can give back, by name; none for who is not root."""
    from pyiommufd.host.claims.status import list_claims

    return (name for claim in list_claims()[0] if claim.state != "session" for name in claim.devices)


@one_of
def _built_kernels() -> list[str]:
    from pyiommufd.testing.provision.kernels import cache_folder, cached_releases

    return cached_releases(cache_folder())


def kernels(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Kernels for the guest: those built earlier by their versions, else files."""
    return _built_kernels(ctx, param, incomplete) or files(ctx, param, incomplete)
