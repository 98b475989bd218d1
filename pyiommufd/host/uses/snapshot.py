"""What the machine is doing, looked up once for all the devices that are asked about."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from pyiommufd.host import sysfs
from pyiommufd.host.discovery.devices import HostDevice
from pyiommufd.host.uses import netlink
from pyiommufd.host.uses.exports import Export, exports, served_ports
from pyiommufd.host.uses.folders import fibre_channel_controllers, folders_below
from pyiommufd.host.uses.foreign_links import ForeignLinks, foreign_links
from pyiommufd.host.uses.mounts import Mount, loop_devices, mount_table, swap_areas
from pyiommufd.host.uses.netconsole import Netconsole, netconsole
from pyiommufd.host.uses.packet_sockets import PacketSockets, packet_sockets
from pyiommufd.host.uses.processes import Processes, look_at_processes, open_files


class MachineSnapshot:
    """The machine's mounts, swap areas, routes and open files, each from when it is first asked for.

    Args:
        thorough: Look also where it takes time or touches something: at what processes have mapped, and, by opening a
            disk for a moment, whether the kernel has it for itself.
    """

    def __init__(self, *, thorough: bool) -> None:
        self.thorough = thorough
        self._folders: dict[HostDevice, list[Path]] = {}

    def folders(self, device: HostDevice) -> list[Path]:
        """See `folders_below`; with those of the NVMe controllers that it leads to by Fibre Channel."""
        if device not in self._folders:
            found = list(folders_below(device))
            for controller in fibre_channel_controllers(found):
                found += [Path(folder) for folder, _, _ in os.walk(controller)]
            self._folders[device] = found
        return self._folders[device]

    @cached_property
    def processes(self) -> Processes:
        """All processes, each looked at once."""
        return look_at_processes(mappings=self.thorough)

    @cached_property
    def open_files(self) -> dict[str, list[str]]:
        """See `processes.open_files`."""
        return open_files(self.processes)

    @property
    def unseen(self) -> list[tuple[str, str]]:
        """See `Processes.unseen`."""
        return self.processes.unseen

    @cached_property
    def foreign_links(self) -> ForeignLinks:
        """The interfaces in other network namespaces that stand above one of this one."""
        places = [(f"{sysfs.PROC}/{process}/ns/net", whose) for process, whose in self.processes.networks]
        # One without a process has a name (ip-netns(8)), in this mount namespace or in init's.
        names = [mount.point for mount in self.mounts if mount.kind == "nsfs"]
        tops = ("", f"{sysfs.PROC}/1/root")
        places += [(f"{top}{name}", f"the network namespace {name}") for name in names for top in tops]
        return foreign_links(places)

    @cached_property
    def mounts(self) -> list[Mount]:
        """What is mounted, in all mount namespaces."""
        return mount_table(self.processes.namespaces)

    @cached_property
    def loops(self) -> list[tuple[Path, int]]:
        """The loop devices' folders, and the numbers of the disks that their files are, or lie on."""
        return loop_devices()

    @cached_property
    def swaps(self) -> list[tuple[str, int]]:
        """The swap areas, and the numbers of the devices that they are on."""
        return swap_areas()

    @cached_property
    def exports(self) -> list[Export]:
        """The disks that are served to other machines."""
        return exports()

    @cached_property
    def served_ports(self) -> set[int]:
        """See `exports.served_ports`."""
        return served_ports()

    @cached_property
    def are_exports_hidden(self) -> bool:
        """Whether configfs, which shows what is served, is mounted, but not where this process could look."""
        is_here = os.path.ismount(sysfs.SYS / "kernel/config")
        return not is_here and any(mount.kind == "configfs" for mount in self.mounts)

    @cached_property
    def links(self) -> dict[int, netlink.Link]:
        """The network interfaces of this process's network namespace by number, with their addresses and routes."""
        return netlink.links()

    @cached_property
    def packet_sockets(self) -> PacketSockets:
        """The sockets that are bound to a network interface."""
        return packet_sockets()

    @cached_property
    def netconsole(self) -> Netconsole:
        """What the kernel's messages go by."""
        return netconsole()
