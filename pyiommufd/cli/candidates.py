"""What the shell completes arguments with: names that this machine has now.

All are what click takes as a parameter's ``shell_complete``. They look at names first: a machine may have thousands of
devices, and a user waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

import click
from click.shell_completion import CompletionItem

from pyiommufd.errors import DeviceNotFoundError
from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import from_sys_path
from pyiommufd.host.discovery.lookup import SUBSYSTEMS, device_folders
from pyiommufd.printable import printable

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]

_DESCRIBED = 100
"""How many devices are described at most: no screen shows more, and to describe one takes a dozen reads."""


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


def _devices_that(fits: Callable[[str], bool]) -> Completer:
    """Devices, by all that their names are: with or without the PCI domain, interfaces, disks, paths.

    Args:
        fits: Whether the device in this folder of sysfs is of use there.
    """

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if incomplete.startswith("/"):
            return files(ctx, param, incomplete)
        named = [*_devices(incomplete.lower()), *_kernel_names(incomplete)]
        return _described([(name, folder) for name, folder in named if fits(folder)])

    return complete


def _devices(typed: str) -> Iterator[tuple[str, str]]:
    for bus in SUBSYSTEMS:
        for name in _listed(f"bus/{bus}/devices"):
            folder = f"{sysfs.SYS}/bus/{bus}/devices/{name}"
            if bus != "pci" and not os.path.exists(f"{folder}/iommu_group"):  # noqa: PTH110 - as all below, for many
                continue
            short = name.partition(":")[2]
            if name.startswith(typed):
                yield name, folder
            elif bus == "pci" and short.startswith(typed):
                yield short, folder


def _kernel_names(typed: str) -> Iterator[tuple[str, str]]:
    for kind in ("class/net", "block"):
        for name in _listed(kind):
            if name.startswith(typed):
                path = os.path.realpath(f"{sysfs.SYS}/{kind}/{name}")
                yield from ((name, folder) for folder in device_folders(path.rpartition("/")[0]))


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(sysfs.SYS / folder))  # noqa: PTH208
    except OSError:
        return []


def _described(found: list[tuple[str, str]]) -> list[CompletionItem]:
    if len(found) > _DESCRIBED:
        return [CompletionItem(name) for name, _ in found]
    from pyiommufd.host.discovery.pci_ids import pci_ids

    items = []
    for name, folder in found:
        try:
            device = from_sys_path(sysfs.SYS / folder)
        except DeviceNotFoundError:
            continue  # unplugged since
        items.append(CompletionItem(name, help=printable(pci_ids().describe(device) or device.driver or "") or None))
    return items


def _is_no_bridge(folder: str) -> bool:
    return not os.path.exists(f"{folder}/secondary_bus_number")  # noqa: PTH110


def _is_off_host_driver(folder: str) -> bool:
    on_vfio = os.path.isdir(f"{folder}/vfio-dev")  # noqa: PTH112
    return (on_vfio or _driver_of(folder) in ("none", "pci-stub")) and _is_no_bridge(folder)


def _driver_of(folder: str) -> str:
    return sysfs.link_name(f"{folder}/driver") or "none"


devices = _devices_that(bool)
"""All devices."""

claimable = _devices_that(_is_no_bridge)
"""Those that a claim takes."""

strays = _devices_that(_is_off_host_driver)
"""Those that ``rebind`` is for: on pci-stub, a vfio driver or none."""

physical_functions = _devices_that(lambda folder: os.path.exists(f"{folder}/sriov_totalvfs"))  # noqa: PTH110
"""Those that can have virtual functions."""


def ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """``vendor:device`` of the PCI devices that are there, each once."""
    del ctx, param
    folders: dict[str, str] = {}
    for name in _listed("bus/pci/devices"):
        folder = f"{sysfs.SYS}/bus/pci/devices/{name}"
        vendor, device = sysfs.number(f"{folder}/vendor", 16), sysfs.number(f"{folder}/device", 16)
        if vendor is not None and device is not None:
            folders.setdefault(f"{vendor:04x}:{device:04x}", folder)
    return _described([(text, folders[text]) for text in sorted(folders) if text.startswith(incomplete.lower())])


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
def groups() -> list[str]:
    """The numbers of the IOMMU groups."""
    from pyiommufd.host.discovery.groups import groups_folder

    return _listed(str(groups_folder()))


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
