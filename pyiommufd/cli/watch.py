"""``pyiommufd watch``: devices that come, go and change drivers, as they do."""

from __future__ import annotations

import time

import click

from pyiommufd.cli import records
from pyiommufd.cli.arguments import Choice
from pyiommufd.cli.output import ReadingCommand, echo, json_option, print_json, print_none
from pyiommufd.host.discovery.kernel_names import kernel_names
from pyiommufd.host.discovery.lookup import SUBSYSTEMS
from pyiommufd.host.discovery.monitor import DeviceEvent, Monitor
from pyiommufd.host.overview.standing import standings

_KEYS = {
    "time": "seconds since 1970",
    "action": "add, remove, bind, unbind, change …",
    "subsystem": "the bus, or vfio-dev for a vfio node",
    "name": "its name there",
    "device": "the device as it is now, as `list` prints one (of a node: the one behind it), or null",
}


@click.command(cls=ReadingCommand)
@click.option("--bus", "buses", multiple=True, type=Choice([*SUBSYSTEMS, "vfio-dev"]), help="Only of this bus.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="End after that time.")
@json_option(_KEYS)
def watch(buses: tuple[str, ...], count: int | None, timeout: float | None, as_json: bool) -> None:
    """Watch devices and vfio nodes come, go and change drivers, until Ctrl-C. With --json: one object a line."""
    deadline = None if timeout is None else time.monotonic() + timeout
    seen = 0
    with Monitor(buses or None) as monitor:
        if not as_json:
            echo(f"watching {', '.join(buses) or 'devices and vfio nodes'}; Ctrl-C ends it", err=True)
        try:
            while count is None or seen < count:
                event = monitor.poll(None if deadline is None else max(deadline - time.monotonic(), 0))
                if event is None:
                    break
                seen += 1
                _show(event, as_json)
        except KeyboardInterrupt:
            pass  # the way to end it
    if not seen and not as_json:
        print_none("no event")


def _show(event: DeviceEvent, as_json: bool) -> None:
    device, now = event.device, time.time()
    if as_json:
        record = None
        if device is not None:
            group = device.group
            among = {device, *(group.devices if group is not None else ())}
            record = records.device_record(device, standings(among)[device], kernel_names([device])[device])
        print_json(
            {"time": now, "action": event.action, "subsystem": event.subsystem, "name": event.name, "device": record},
            indent=None,
        )
        return
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    words = [clock, f"{event.action:<7}", event.subsystem, event.name]
    if device is not None:
        words += [f"({device.name})"] if device.name != event.name else []
        words.append(device.driver or "no driver")
        words.append("no group" if device.group_id is None else f"group {device.group_id}")
        if device.without_iommu and device.on_vfio:
            words.append("no IOMMU")
    echo(*words, sep="  ")
