"""``pyiommufd topology``: the PCI tree with IOMMU groups, drivers and holders, in the terminal or as a picture."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from pyiommufd.cli import records
from pyiommufd.cli.output import (
    EscapedText,
    ReadingCommand,
    echo,
    fitted,
    json_option,
    print_iommu_note,
    print_json,
    print_none,
    print_words,
    show_progress,
    style,
)
from pyiommufd.cli.status import FAILED, MISSING
from pyiommufd.cli.topology_dot import dot as describe
from pyiommufd.host.discovery.pci_ids import pci_ids
from pyiommufd.host.overview.topology import GroupBox, Node, Topology, look_at_topology
from pyiommufd.printable import printable

_KEYS = (
    {"devices": "every device, a bridge before what is behind it", "groups": "the IOMMU groups, by number"}
    | records.nested("devices", records.DEVICE)
    | {
        "devices.parent": "the bridge that it is behind, or its host bridge",
        "devices.holders": "who holds it",
    }
    | records.nested("devices.holders", records.HOLDER)
    | {
        "groups.id": "its number",
        "groups.iommus": "the IOMMUs that translate for it",
        "groups.devices": "the names of its members",
        "groups.takes": "the members that a claim of one of them would move",
        "groups.refused": "whether such a claim is refused, unless forced",
        "groups.holders": "who holds its legacy node",
    }
    | records.nested("groups.holders", records.HOLDER)
)


@click.command(cls=ReadingCommand)
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Draw it; takes graphviz.")
@click.option("--dot", "as_dot", is_flag=True, help="Print the picture's description in graphviz's language.")
@json_option(_KEYS)
def topology(svg: Path | None, as_dot: bool, as_json: bool) -> None:
    """Show how the devices hang together: bridges, IOMMU groups, drivers, vfio nodes and who holds them.

    Below the tree, or in the group's box, stands what a claim of one of the group's devices would take.
    """
    with show_progress("looking at the devices"):
        found = look_at_topology()
    if as_json:
        print_json(_record(found))
    if as_dot:
        echo(describe(found, pci_ids()))
    if svg is not None:
        _draw(found, svg)
    if not as_json and not as_dot and svg is None:
        print_iommu_note()
        if not found.roots:
            print_none("no device")
        _print(found)


def _draw(found: Topology, file: Path) -> None:
    try:
        import graphviz
    except ModuleNotFoundError:
        echo("pyiommufd topology: --svg needs graphviz: pip install 'pyiommufd[cli]'", err=True)
        sys.exit(MISSING)
    with show_progress("drawing"):
        try:
            picture = graphviz.Source(describe(found, pci_ids())).pipe(format="svg")
        except graphviz.ExecutableNotFound:
            echo("pyiommufd topology: --svg needs the program dot: apt-get install graphviz", err=True)
            sys.exit(MISSING)
    try:
        file.write_bytes(picture)
    except OSError as error:
        echo(f"pyiommufd topology: {printable(str(file))}: {error.strerror}", err=True)
        sys.exit(FAILED)


def _record(found: Topology) -> records.Record:
    parents: dict[str, str] = {}
    for root, nodes in found.roots.items():
        for top in nodes:
            parents[top.device.name] = root
            for node in top.walk():
                parents |= {child.device.name: node.device.name for child in node.children}
    return {
        "devices": [
            records.device_record(node.device, node.standing, node.names)
            | {
                "parent": parents[node.device.name],
                "holders": [records.holder_record(holder) for holder in node.holders],
            }
            for node in found.nodes()
        ],
        "groups": [
            {
                "id": group.id,
                "iommus": list(group.iommus),
                "devices": [device.name for device in group.devices],
                "takes": [device.name for device in group.takes],
                "refused": group.refused,
                "holders": [records.holder_record(holder) for holder in group.holders],
            }
            for group in found.groups
        ],
    }


def _print(found: Topology) -> None:
    for root, nodes in found.roots.items():
        echo(style(root, bold=True))
        _print_branches(nodes, "")
    for group in found.groups:
        echo(fitted(_group_text(group)))


def _print_branches(nodes: Sequence[Node], before: str) -> None:
    for number, node in enumerate(nodes, 1):
        last = number == len(nodes)
        below = before + ("    " if last else "│   ")
        further = below + ("│   " if node.children else "    ")
        description = records.in_words(node.device, node.names)
        print_words(_words(node), description, f"{before}{'└── ' if last else '├── '}", f"{further}  ")
        _print_branches(node.children, below)


def _words(node: Node) -> Iterator[EscapedText]:
    device = node.device
    yield style(device.name, bold=True)
    if (ids := records.ids(device)) is not None:
        yield style(ids, dim=True)
    if device.group_id is not None:
        yield style(f"[group {device.group_id}]", fg="blue")
    yield style(device.driver or "no driver", dim=device.driver is None)
    yield style(node.standing)
    if device.vfio_cdev is not None:
        yield style(device.vfio_cdev)
    for holder in node.holders:
        yield style(f"held by pid {holder.pid} ({holder.command})", fg="magenta")


def _group_text(group: GroupBox) -> str:
    text = f"group {group.id} ({', '.join(group.iommus) or group.without_iommu or 'no IOMMU named'}): "
    if not group.takes:
        text += "nothing for a claim to take"
    else:
        taken = ", ".join(f"{device.name} from {device.driver or 'no driver'}" for device in group.takes)
        text += f"a claim takes {taken}{'; refused, for what pyiommufd plan says' if group.refused else ''}"
    for holder in group.holders:
        text += f"; {holder}"
    return text
