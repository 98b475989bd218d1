"""``pyiommufd mdev``: mediated devices, the types of them that parents offer, and how they are made and removed."""

from __future__ import annotations

from uuid import UUID

import click

from pyiommufd.cli import candidates
from pyiommufd.cli.arguments import DescribedArgument
from pyiommufd.cli.changing import check_refusals, dry_run_option, ended_by_signals, force_option_of, say
from pyiommufd.cli.output import (
    ReadingCommand,
    echo,
    json_option,
    print_json,
    print_none,
    print_table,
    print_visibility_note,
)
from pyiommufd.host.discovery.devices import find_device
from pyiommufd.host.mdev import (
    MdevType,
    check_mdev,
    check_root,
    create_mdev,
    mdev_refusals,
    mdev_types,
    new_uuid,
    remove_mdev,
)

_KEYS = {
    "parent": "the device whose driver makes devices of this type",
    "type": "what the kernel calls the type",
    "name": "the driver's name for it",
    "description": "what the driver says of it, or empty",
    "device_api": "the interface of its devices, such as vfio-pci",
    "available": "how many more can be made",
    "devices": "those that there are",
    "devices.uuid": "its UUID, which is its name",
    "devices.vfio_cdev": "its node, or null",
    "devices.group": "the number of its IOMMU group, or null",
}
_PARENT = "A name in /sys/class/mdev_bus, such as a PCI address; or a path below /sys."


@click.group()
def mdev() -> None:
    """Show, create and remove mediated devices.

    They are on a vfio driver from the start: no claim is needed. Their parent's driver keeps what they do to the memory
    that is mapped for them, not an IOMMU.
    """


@mdev.command(name="list", cls=ReadingCommand)
@click.argument(
    "parent",
    required=False,
    cls=DescribedArgument,
    label="PARENT",
    description=_PARENT,
    metavar="[PARENT]",
    shell_complete=candidates.mdev_parents,
)
@json_option(_KEYS)
def list_command(parent: str | None, as_json: bool) -> None:
    """Show the types of mediated devices that devices here offer, or PARENT alone, and the devices that there are."""
    types = mdev_types(parent)
    if as_json:
        print_json([_record(kind) for kind in types])
        return
    if not types:
        print_none("no driver here makes mediated devices")
        return
    rows = [(kind.parent.name, kind.id, kind.available, kind.device_api, _words(kind)) for kind in types]
    print_table(("PARENT", "TYPE", "AVAILABLE", "API", "NAME"), rows)
    made = [
        (one.name, kind.parent.name, kind.id, one.vfio_cdev, one.group_id) for kind in types for one in kind.devices
    ]
    if made:
        echo()
        print_table(("DEVICE", "PARENT", "TYPE", "NODE", "GROUP"), made)


def _words(kind: MdevType) -> str:
    return " ".join(f"{kind.name}: {kind.description}".split()) if kind.description else kind.name


def _record(kind: MdevType) -> dict[str, object]:
    return {
        "parent": kind.parent.name,
        "type": kind.id,
        "name": kind.name,
        "description": kind.description,
        "device_api": kind.device_api,
        "available": kind.available,
        "devices": [
            {"uuid": device.name, "vfio_cdev": device.vfio_cdev, "group": device.group_id} for device in kind.devices
        ],
    }


@mdev.command()
@click.argument(
    "parent",
    cls=DescribedArgument,
    label="PARENT",
    description=_PARENT,
    metavar=None,
    shell_complete=candidates.mdev_parents,
)
@click.argument(
    "type_id",
    cls=DescribedArgument,
    label="TYPE",
    description="As pyiommufd mdev list shows it.",
    metavar="TYPE",
    shell_complete=candidates.mdev_types,
)
@click.option("--uuid", type=click.UUID, help="What the device is called; left out: a new one.")
@dry_run_option
def create(parent: str, type_id: str, uuid: UUID | None, dry_run: bool) -> None:
    """Make a mediated device of PARENT, of the type TYPE.

    It lasts until it is removed, PARENT leaves its driver, or the machine is started anew. The step, with the UUID, is
    printed before it is taken.
    """
    kind = check_mdev(parent, type_id, uuid)
    name = str(new_uuid(uuid))
    if not dry_run:
        check_root(kind)
    echo(f"{kind.parent.name}: make {name if uuid or not dry_run else 'a device with a new UUID'} of type {kind.id}")
    if not dry_run:
        with ended_by_signals():
            device = create_mdev(parent, type_id, name)
        say(f"{device.name} is there: {device.vfio_cdev or 'this kernel has no cdevs'}")


@mdev.command()
@click.argument(
    "device",
    cls=DescribedArgument,
    label="DEVICE",
    description="A UUID, as pyiommufd mdev list shows it; or the path of a vfio node.",
    metavar=None,
    shell_complete=candidates.mdevs,
)
@force_option_of(("held", "unseen"))
@dry_run_option
def remove(device: str, force: tuple[str, ...], dry_run: bool) -> None:
    """Remove the mediated device DEVICE.

    One that a process has open, or a claim has, is refused. With --force held its users are asked to close it where its
    driver can ask, and are waited for.

    The step is printed before it is taken.
    """
    target = find_device(device)
    if not dry_run:
        check_root(target)
    print_visibility_note()
    refusals = mdev_refusals(target, force=force)
    check_refusals(refusals, f"the removal of {target.name}")
    echo(f"{target.name}: remove")
    if not dry_run:
        with ended_by_signals():
            remove_mdev(target, force=force)
