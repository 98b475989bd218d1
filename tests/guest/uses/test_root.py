"""A process whose root is on a disk, as that of a machine is after its initial file system has handed over."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd import HostDevice, find_device
from pyiommufd.host import uses
from pyiommufd.testing.drivers.virtio_blk import VirtioBlkDriver
from tests.guest.uses.types import Driven, Refused, Runner
from tests.patience import until

# What an initial file system does at its end (switch_root): the disk's filesystem is moved to / and made the root.
SWITCH = """
set -e
mount "$1" /mnt
for path in /.[a-z]* /*; do
    [ "$path" = /mnt ] && continue
    if [ -L "$path" ]; then cp -P "$path" "/mnt$path"
    elif [ -d "$path" ]; then mkdir -p "/mnt$path"; mount --rbind "$path" "/mnt$path"
    fi
done
shift
cd /mnt
mount --move . /
exec chroot . "$@"
"""

ASK = """
import json, os, sys
from pyiommufd import ClaimRefusedError, plan_claim

os.chdir("/")
plan = plan_claim(sys.argv[1])
try:
    plan.apply()
except ClaimRefusedError as error:
    assert error.refusals == plan.refusals
    print(json.dumps([[one.device, one.kind, one.reason] for one in error.refusals]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def volume(run: Runner) -> Iterator[Path]:
    """A filesystem on a device of device mapper on a partition of the disk, with a file in it."""
    table = f"0 {run('blockdev', '--getsz', '/dev/vda1')} linear /dev/vda1 0"
    run("dmsetup", "create", "system", "--table", table)
    run("mkfs.ext4", "-q", "/dev/dm-0")
    yield Path("/dev/dm-0")
    run("dmsetup", "remove", "--retry", "system")


def test_root_on_a_volume_on_a_partition(
    system_disk: HostDevice, volume: Path, refused: Refused, run: Runner, driven: Driven, tmp_path: Path
) -> None:
    command = ["unshare", "--mount", "sh", "-c", SWITCH, "switch", str(volume)]
    command += [sys.executable, "-c", ASK, system_disk.name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as inside:
        assert inside.stdin is not None
        assert inside.stdout is not None
        line = inside.stdout.readline()
        under = (system_disk.name, "dm", "vda1 is under device mapper's dm-0 (system)")
        layers = ", by way of vda, vda1 and dm-0"
        expected = [under, (system_disk.name, "root", f"it holds the root filesystem, mounted on /{layers}")]
        assert [tuple(one) for one in json.loads(line)] == expected
        # For everybody else it is a filesystem that one process sees.
        place = f"/ of pid {inside.pid} ({Path('/proc', str(inside.pid), 'comm').read_text().strip()})"
        seen = (system_disk.name, "mounted", f"it holds the filesystem mounted on {place}{layers}")
        assert refused(system_disk) == [under, seen]
        inside.stdin.close()
    assert inside.returncode == 0


def test_idle_disk_is_claimed_used_and_given_back(
    system_disk: HostDevice, run: Runner, driven: Driven, tmp_path: Path
) -> None:
    run("mkfs.ext4", "-q", "/dev/vda1")
    run("mount", "/dev/vda1", tmp_path)
    (tmp_path / "file").write_text("kept")
    run("umount", tmp_path)
    start = 2048 + 2  # the partition's, and the sector of the superblock
    content = Path("/dev/vda").read_bytes()[start * 512 : (start + 2) * 512]
    assert content[56:58] == b"\x53\xef"
    assert uses.refusals(system_disk) == ()
    with driven(system_disk) as (device, ioas), VirtioBlkDriver(device, ioas) as driver:
        assert driver.sectors == 64 << 11
        assert driver.read(start, 1024) == content
        with pytest.raises(OSError, match="answers a read of sector"):
            driver.read(driver.sectors)
    assert find_device(system_disk.name).driver == "virtio-pci"
    until(Path("/dev/vda1").is_block_device)
    run("mount", "/dev/vda1", tmp_path)
    assert (tmp_path / "file").read_text() == "kept"
    run("umount", tmp_path)
