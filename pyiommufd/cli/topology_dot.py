"""The topology as a picture: one description in graphviz's language."""

from __future__ import annotations

from collections.abc import Iterator

from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.discovery.pci_ids import PciIds
from pyiommufd.host.overview.standing import REFUSED, Standing
from pyiommufd.host.overview.topology import GroupBox, Node, Topology
from pyiommufd.printable import printable

_FILLS = {
    Standing.VFIO: "#cfe8fc",
    Standing.VFIO_NOIOMMU: "#f6c9c9",
    Standing.CLAIMABLE: "#d8f0d3",
    **dict.fromkeys(REFUSED, "#fde9c4"),
    Standing.BRIDGE: "#eeeeee",
}
_OTHER = "#ffffff"
_LONGEST = 34


def dot(topology: Topology, names: PciIds) -> str:
    """The description: devices as boxes, each once, behind their bridges, in the boxes of their groups."""
    return "\n".join(["digraph topology {", *_style(), *_body(topology, names), "}"])


def _style() -> Iterator[str]:
    font = 'fontname="Helvetica,Arial,sans-serif"'
    yield f'  graph [rankdir=LR, ordering=out, ranksep=0.5, nodesep=0.15, {font}, fontsize=12, bgcolor="white"];'
    yield f'  node [shape=box, style="filled,rounded", fillcolor="white", margin="0.18,0.06", {font}, fontsize=12];'
    # From side to side: elsewhere they would go through the text of a group.
    yield f'  edge [headport=w, tailport=e, arrowhead=none, color="#666666", {font}, fontsize=10];'


def _body(topology: Topology, names: PciIds) -> Iterator[str]:
    nodes = {node.device: node for node in topology.nodes()}
    for group in topology.groups:
        yield f"  subgraph cluster_group_{group.id} {{"
        yield f'    label={_text(*_group_lines(group))}; labeljust=l; style=rounded; color="#3a6ea5"; margin=12;'
        for device in group.devices:
            yield f"    {_device(nodes[device], names)}"
        yield "  }"
    grouped = {device for group in topology.groups for device in group.devices}
    for device, node in nodes.items():
        if device not in grouped:
            yield f"  {_device(node, names)}"
    for root, tops in topology.roots.items():
        yield f'  {_text(root)} [shape=box, style="filled", fillcolor="#dddddd"];'
        for node in tops:
            yield f"  {_text(root)} -> {_text(_id(node.device))};"
            yield from _edges(node)
    yield from _holders(topology)


def _edges(node: Node) -> Iterator[str]:
    for child in node.children:
        yield f"  {_text(_id(node.device))} -> {_text(_id(child.device))};"
        yield from _edges(child)


def _holders(topology: Topology) -> Iterator[str]:
    """Processes: each once, with a line to each device that it holds."""
    held = [(holder, node.device) for node in topology.nodes() for holder in node.holders]
    held += [(holder, group.devices[0]) for group in topology.groups for holder in group.holders]
    for pid, command in dict.fromkeys((holder.pid, holder.command) for holder, _ in held):
        yield f'  "pid {pid}" [label={_text(f"pid {pid}", command)}, shape=ellipse, fillcolor="#f6d5e5"];'
    for pid, device, node in dict.fromkeys((holder.pid, device, holder.node) for holder, device in held):
        label = "" if "/devices/" in node else f", label={_text(node)}"
        yield f'  {_text(_id(device))} -> "pid {pid}" [style=dashed, color="#b03a7a"{label}];'


def _group_lines(group: GroupBox) -> Iterator[str]:
    iommus = ", ".join(group.iommus) or group.without_iommu
    yield f"IOMMU group {group.id}" + (f", {iommus}" if iommus else "")
    if len(group.takes) > 1:
        yield f"a claim takes {len(group.takes)} devices{' and is refused' if group.refused else ''}"
    elif group.refused:
        yield "a claim is refused"


def _device(node: Node, names: PciIds) -> str:
    device = node.device
    ids = ""
    if device.vendor_id is not None and device.device_id is not None:
        ids = f" [{device.vendor_id:04x}:{device.device_id:04x}]"
    lines = [
        f"{device.name}{ids}",
        _short(str(node.names)),
        _short(names.describe(device)),
        f"{device.driver or 'no driver'}, {node.standing}",
    ]
    if device.vfio_cdev is not None:
        lines.append(device.vfio_cdev)
    return (
        f'{_text(_id(device))} [label={_text(*filter(None, lines))}, fillcolor="{_FILLS.get(node.standing, _OTHER)}"];'
    )


def _id(device: HostDevice) -> str:
    return f"{device.subsystem} {device.name}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip() + "…"


def _text(*lines: str) -> str:
    """A quoted text; the lines to the left."""
    # Graphviz reads entities, and escapes by backslash.
    escaped = [printable(line).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;") for line in lines]
    return f'"{escaped[0]}"' if len(escaped) == 1 else '"' + "".join(f"{line}\\l" for line in escaped) + '"'
