"""Handing devices on: to virtual machine monitors, and to processes without privileges."""

from pyiommufd.host.users import User
from pyiommufd.vmm.commands import Kind, command_line, kind_of, shell_line
from pyiommufd.vmm.handover import Handover
from pyiommufd.vmm.libvirt import hostdev_xml
from pyiommufd.vmm.vmm import UNLIMITED, VMM

__all__ = ["UNLIMITED", "VMM", "Handover", "Kind", "User", "command_line", "hostdev_xml", "kind_of", "shell_line"]
