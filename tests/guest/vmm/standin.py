"""Stands in for a monitor: finds its fds as a monitor would, binds the devices for real, moves bytes by DMA, and waits.

    standin.py [ACTION…]

What it says goes to its standard output, a line each. Actions, in order:

- ``fds``: from the environment, as any program; without it the arguments are taken for QEMU's or Cloud Hypervisor's, by
  this program's name.
- ``whoami``: user, capabilities, limit on locked memory.
- ``dma``: copies a text by the first device.
- ``remove``: lets a device go when the host wants it back.
- ``wait``: until a signal comes; exits with status 100 and its number.
- ``exit=N``.
"""

from __future__ import annotations

import itertools
import os
import re
import resource
import signal
import sys
from pathlib import Path

from pyiommufd import IOMMUFD, Device, DeviceFile, DMABuffer
from pyiommufd.testing.drivers.edu import EduDriver
from pyiommufd.vmm import Handover

_QEMU_OBJECT = re.compile(r"iommufd,id=(?P<id>[\w.-]+),fd=(?P<fd>\d+)")
_QEMU_DEVICE = re.compile(r"vfio-pci,id=(?P<id>[\w.-]+),fd=(?P<fd>\d+),iommufd=(?P<iommufd>[\w.-]+)(?:,[\w=.-]+)*")
_CH_PLATFORM = re.compile(r"(?:[\w=]+,)*iommufd=on,iommufd_fd=(?P<fd>\d+)")
_CH_DEVICE = re.compile(r"fd=(?P<fd>\d+),id=(?P<id>[\w-]+)(?:,[\w=]+)*")


def say(*words: object) -> None:
    print(*words, flush=True)


def of_qemu(arguments: list[str]) -> Handover:
    """As QEMU's documentation has it (docs/devel/vfio-iommufd.rst): each option with a value of its own."""
    values: dict[str, list[str]] = {"-object": [], "-device": []}
    for option, value in itertools.pairwise(arguments):
        if option in values:
            values[option].append(value)
    (backend,) = filter(None, map(_QEMU_OBJECT.fullmatch, values["-object"]))
    devices = [match for match in map(_QEMU_DEVICE.fullmatch, values["-device"]) if match]
    assert {device["iommufd"] for device in devices} == {backend["id"]}
    assert len({device["id"] for device in devices}) == len(devices)
    say("ids", backend["id"], *(device["id"] for device in devices))
    return Handover(IOMMUFD.from_fd(int(backend["fd"])), [DeviceFile.from_fd(int(device["fd"])) for device in devices])


def of_cloud_hypervisor(arguments: list[str]) -> Handover:
    """As Cloud Hypervisor's help has it: --platform once with one value, --device once with any number of them."""
    assert arguments.count("--platform") == arguments.count("--device") == 1
    platform = _CH_PLATFORM.fullmatch(arguments[arguments.index("--platform") + 1])
    assert platform, arguments
    values = []
    for argument in arguments[arguments.index("--device") + 1 :]:
        if argument.startswith("-"):
            break
        values.append(argument)
    devices = [match for match in map(_CH_DEVICE.fullmatch, values) if match]
    assert len(devices) == len(values), values
    say("ids", *(device["id"] for device in devices))
    return Handover(IOMMUFD.from_fd(int(platform["fd"])), [DeviceFile.from_fd(int(device["fd"])) for device in devices])


def whoami() -> None:
    status = Path("/proc/self/status").read_text()
    capabilities = re.findall(r"^Cap(?:Prm|Eff|Bnd|Amb):\s*0*([0-9a-f]+)$", status, re.MULTILINE)
    privileges = re.search(r"^NoNewPrivs:\s*(\d)$", status, re.MULTILINE)
    say("user", os.getuid(), os.geteuid(), os.getgid(), *os.getgroups())
    say("capabilities", *capabilities)
    say("no new privileges", privileges and privileges[1])
    say("memlock", *resource.getrlimit(resource.RLIMIT_MEMLOCK))


def dma(iommufd: IOMMUFD, device: Device) -> str:
    """What a text has become on its way through the device."""
    memory = DMABuffer(8192)
    memory[:5] = b"moved"
    ioas = iommufd.alloc_ioas()
    device.attach(ioas)
    device.bus_master = True
    mapping = ioas.map(memory, iova=0x100000)
    with EduDriver(device) as driver:
        driver.copy_in(mapping.iova, 5)
        driver.copy_out(mapping.iova + 4096, 5)
    return memory[4096:4101].decode()


def main() -> None:
    name = Path(sys.argv[0]).name
    arguments = sys.argv[1:]
    actions = arguments[: arguments.index("--")] if "--" in arguments else arguments
    handover = None
    caught: list[int] = []
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, signals) & signals, "signals are blocked from the start"
    if name.startswith("qemu"):
        handover = of_qemu(arguments)
    elif name.startswith("cloud-hypervisor"):
        handover = of_cloud_hypervisor(arguments)
    elif "fds" in actions:
        handover = Handover.inherited()
    devices = []
    if handover is not None:
        devices = [handover.iommufd.bind(file) for file in handover.devices]
        say("bound", *(device.name for device in devices))
    for action in actions:
        if action == "whoami":
            whoami()
        elif action == "dma":
            assert handover is not None
            say("dma", dma(handover.iommufd, devices[0]))
        elif action == "remove":
            for device in devices:
                device.watch_removal(lambda device: say("asked for", device.name))
        elif action == "wait":
            say("ready", os.getpid())
            caught.append(signal.sigwait(signals))
            say("caught", signal.Signals(caught[-1]).name)
        elif action == "close":
            assert handover is not None
            handover.iommufd.close()
        elif action.startswith("exit="):
            os._exit(int(action.partition("=")[2]))
    os._exit(100 + caught[0] if caught else 0)


if __name__ == "__main__":
    main()
