"""Arguments that several commands take."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from pyiommufd.printable import printable


class DeviceName(click.types.StringParamType):
    """The name of a device, as `pyiommufd.find_device` takes it; the shell completes those that are there."""

    name = "device"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The devices whose name begins so, with or without the PCI domain."""
        del ctx, param
        from pyiommufd.host.discovery.devices import list_devices
        from pyiommufd.host.discovery.pci_ids import pci_ids

        found = []
        for device in list_devices():
            for name in (device.name, device.name.partition(":")[2]):
                if name.startswith(incomplete.lower()) and (incomplete or name == device.name):
                    found.append(
                        CompletionItem(name, help=printable(pci_ids().describe(device) or device.driver or ""))
                    )
                    break
        return found


device_argument = click.argument("device", type=DeviceName())
"""The device that a command is about."""
