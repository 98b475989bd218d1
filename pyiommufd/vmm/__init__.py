"""Handing devices on: to virtual machine monitors, and to processes without privileges."""

from ..host.users import User
from .commands import Kind, command_line, kind_of, shell_line
from .handover import Handover
from .libvirt import hostdev_xml
from .vmm import UNLIMITED, VMM

__all__ = ["UNLIMITED", "VMM", "Handover", "Kind", "User", "command_line", "hostdev_xml", "kind_of", "shell_line"]
