"""The example of handing over runs as it stands; each example says what it does not take, and gives it back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyiommufd import HostDevice, list_devices
from tests.guest.vmm.conftest import named

PASSTHROUGH = "examples/qemu_passthrough.py"


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.long
def test_passthrough_to_qemu(alone: HostDevice, tmp_path: Path) -> None:
    program = named(tmp_path, "qemu-system-x86_64")
    done = run(PASSTHROUGH, alone.name, str(program), "dma", "exit=3", "--", "-m", "2G")
    assert done.stdout.splitlines() == ["ids iommufd0 vfio0", f"bound {alone.name}", "dma moved"], done.stderr
    assert done.returncode == 3


def refusal(program: str, *arguments: str) -> str:
    """What an example says, in a line, of arguments that it cannot do its work with."""
    done = run(program, *arguments)
    assert (done.returncode, done.stdout) == (1, ""), done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.long
def test_device_of_another_make(alone: HostDevice, neighbour: HostDevice) -> None:
    assert refusal("examples/unprivileged_driver.py", neighbour.name) == f"{neighbour.name} is not an edu device"
    assert refusal("examples/nvme_identify.py", alone.name).startswith(f"{alone.name} is not an NVMe controller")


def test_peer_of_another_group(first: HostDevice, alone: HostDevice) -> None:
    said = refusal("examples/shared_group.py", first.name, alone.name)
    assert said == f"{alone.name} is in group {alone.group_id}, not in group {first.group_id} as {first.name}"
    assert (
        refusal("examples/shared_group.py", first.name, first.name)
        == f"{first.name} is named twice: PEER is another device"
    )


def test_vmm_that_is_not_there(alone: HostDevice) -> None:
    assert (
        refusal(PASSTHROUGH, alone.name, "qemu-system-none")
        == "cannot start qemu-system-none: No such file or directory"
    )


@pytest.mark.parametrize("program", ["examples/nvme_identify.py", PASSTHROUGH, "examples/shared_group.py"])
def test_device_that_the_host_uses(program: str) -> None:
    """The first that the guest has its filesystems from."""
    used = next(one for one in list_devices("pci") if next(one.sys_path.glob("virtio*/mount_tag"), None) is not None)
    more = ["qemu-system-x86_64"] if program == PASSTHROUGH else []
    done = run(program, used.name, *more)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{used.name}: it holds the filesystem mounted on " in done.stderr


@pytest.mark.parametrize("count", [100, pytest.param(10000, marks=pytest.mark.long)])
def test_page_fault_service(count: int) -> None:
    done = run("examples/fault_service.py", str(count))
    assert done.stdout.splitlines()[:1] == [f"{count} page faults served in order, and 1 refused"], done.stderr
    assert done.returncode == 0
