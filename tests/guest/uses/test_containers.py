"""What a process in namespaces of its own sees of the host's uses: what it does not see is refused, not taken."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyiommufd import IOMMUFD, HostDevice, list_devices, plan_claim
from pyiommufd.host import uses
from pyiommufd.host.namespaces import foreign_namespaces, visibility_note
from tests.guest.uses.disks import node_of
from tests.guest.uses.test_storage import mounted
from tests.guest.uses.types import Runner
from tests.patience import until

Refusals = list[tuple[str, str]]
PROCESSES = ("unseen", "what processes outside this PID namespace do with it is not seen: look from the host")
CONTAINER = ("--pid", "--fork", "--mount", "--mount-proc")


@pytest.fixture(autouse=True)
def idle_after(disk: HostDevice) -> Iterator[None]:
    """No test leaves a use, or a node that it has made, behind."""
    yield
    assert uses.refusals(disk) == ()
    assert list(Path("/dev").glob("pyiommufd*")) == []


def inside(*command: str, flags: tuple[str, ...], before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in namespaces of its own, after some lines of a shell."""
    script = f'{before}\nexec "$@"'
    return subprocess.run(
        ["unshare", *flags, "sh", "-ec", script, "sh", *command], capture_output=True, text=True, check=False
    )


def pyiommufd(*arguments: str, flags: tuple[str, ...] = CONTAINER) -> subprocess.CompletedProcess[str]:
    """Run the command in there."""
    return inside(sys.executable, "-m", "pyiommufd.cli", *arguments, flags=flags)


PLAN = """
import json, sys
from pyiommufd import plan_claim
print(json.dumps([(one.device, one.kind, one.reason) for one in plan_claim(sys.argv[1], force=sys.argv[2:]).refusals]))
"""


def planned(device: HostDevice, *force: str, flags: tuple[str, ...] = CONTAINER, before: str = "") -> Refusals:
    """What a claim would be refused for in there."""
    python = (sys.executable, "-c", PLAN, device.name, *force)
    done = inside(*python, flags=flags, before=before)
    assert done.returncode == 0, done.stderr
    refusals = json.loads(done.stdout)
    assert {name for name, _, _ in refusals} <= {device.name}
    return [(kind, reason) for _, kind, reason in refusals]


def test_guest_itself_sees_all(disk: HostDevice) -> None:
    assert foreign_namespaces() == ()
    assert visibility_note() == ""


def test_idle_disk(disk: HostDevice, node: Path) -> None:
    """Nothing uses it, and that cannot be known in there."""
    assert planned(disk) == [PROCESSES]
    assert planned(disk, "unseen") == []
    assert planned(disk, flags=("--mount",)) == []
    assert planned(disk, flags=("--net",)) == []
    # With the host's /proc every process is seen.
    assert planned(disk, flags=("--pid", "--fork")) == []


def test_user_namespace(disk: HostDevice, node: Path) -> None:
    """Where a process has all capabilities, and may look at no other process."""
    outside = "what processes outside this user namespace do with it is not seen: look from the host, as root"
    with Path(str(node).removesuffix("n1")).open("rb"):
        assert [kind for kind, _ in planned(disk, flags=())] == ["held"]
        # What a chroot does not let its processes make, as the guest's are in one, their own root does.
        flags = ("--user", "--map-root-user")
        done = subprocess.run(["unshare", *flags, "true"], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no user namespace can be made here: {done.stderr.decode()}")
        assert ("unseen", outside) in planned(disk, flags=flags)
        assert pyiommufd("claim", disk.name, flags=flags).returncode == 1
    assert disk.refreshed().driver == "nvme"


def test_network_namespace_with_a_sysfs_of_its_own(cards: list[HostDevice]) -> None:
    before = "mount -t sysfs none /sys"
    ((kind, reason),) = planned(cards[0], flags=("--net", "--mount"), before=before)
    assert kind == "unseen"
    assert reason.endswith("look on the host")
    # Of the host's network namespace, and with that /sys, a process does not see it either.
    before += '; set -- nsenter --net=/proc/1/ns/net "$@"'
    assert planned(cards[0], flags=("--net", "--mount"), before=before) == [(kind, reason)]


@pytest.fixture
def cards() -> list[HostDevice]:
    return [one for one in list_devices("pci") if one.driver == "e1000e"]


def test_commands_say_so(disk: HostDevice, node: Path) -> None:
    where = "this process is in another PID and mount namespace than the machine's init, as in a container"
    for name in ("plan", "claim"):
        done = pyiommufd(name, disk.name)
        assert done.returncode == 1
        assert PROCESSES[1] in done.stdout + done.stderr
        assert where in done.stderr
        assert "claims that were made elsewhere may not be on record here" in done.stderr
    assert disk.refreshed().driver == "nvme"
    for line in (("holders", disk.name), ("release", "--all"), ("recover",)):
        assert where in pyiommufd(*line).stderr
    done = pyiommufd("list", "--json")
    standing = {device["name"]: device["standing"] for device in json.loads(done.stdout)}
    assert standing[disk.name] == "unseen"
    assert "claimable" not in standing.values()
    assert where in done.stderr


@pytest.mark.parametrize(("flags", "state"), [(CONTAINER, "warning"), (("--ipc",), "ok")])
def test_check_says_so(flags: tuple[str, ...], state: str) -> None:
    findings = json.loads(pyiommufd("check", "--json", flags=flags).stdout)["findings"]
    (finding,) = (one for one in findings if one["check"] == "namespaces")
    assert finding["state"] == state
    assert ("pid:[4026531836]" in finding["evidence"]) == (state == "ok")


@pytest.mark.parametrize("there", [True, False], ids=["node", "no node"])
def test_mounted_disk(disk: HostDevice, node: Path, run: Runner, tmp_path: Path, there: bool) -> None:
    """Neither its mount nor a process is seen, but the kernel has it for itself; with a /dev without nodes as well."""
    run("mkfs.ext4", "-q", node)
    with mounted(run, node, tmp_path / "point") as point:
        before = f"umount {point}\n" + ("" if there else "mount -t tmpfs none /dev; mknod /dev/null c 1 3")
        kept = ("held", f"the kernel holds {node} exclusively, and does not show what for")
        assert planned(disk, before=before) == [PROCESSES, kept]
        assert planned(disk, "unseen", before=before) == [kept]


def test_disk_that_cannot_be_opened(disk: HostDevice, node: Path) -> None:
    """No file system lets devices be opened: whether it is in use is not known."""
    (one, two) = planned(disk, before="mount -t tmpfs -o nodev none /dev")
    assert one == PROCESSES
    assert two[0] == "unseen"
    assert (
        two[1]
        == f"whether the kernel holds {node} exclusively cannot be seen: Permission denied; look from the host, as root"
    )


def test_loop_device_without_nodes(disk: HostDevice, node: Path, run: Runner) -> None:
    """The number of what is behind it tells, and not a path that is not to be found."""
    loop = Path(run("losetup", "--find", "--show", node))
    try:
        before = "mount -t tmpfs none /dev; mknod /dev/null c 1 3"
        assert ("held", f"{node.name} is under {loop.name}") in planned(disk, before=before)
    finally:
        run("losetup", "--detach", loop)


def test_device_that_somebody_outside_has_bound(disk: HostDevice, node: Path) -> None:
    """Whose claim is not on record in there, nor is the process to be seen: the driver's state tells."""
    own_run = "mount -t tmpfs none /run"
    reason = "it is bound by a process that is not visible here: look from the host"
    with plan_claim(disk).apply():
        assert planned(disk, before=own_run) == []
        with IOMMUFD() as iommufd, iommufd.bind(disk):
            assert planned(disk, before=own_run) == [("held", reason)]
            rebind = ("rebind", "--dry-run", "--force", "unseen", disk.name)
            done = inside(sys.executable, "-m", "pyiommufd.cli", *rebind, flags=CONTAINER, before=own_run)
            assert done.returncode == 1
            assert f"{disk.name}: {reason} [held]" in done.stderr
        assert planned(disk, before=own_run) == []
    until(lambda: node_of(disk))


MOUNT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10020000) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWUSER | CLONE_NEWNS
for name, text in (("setgroups", "deny"), ("uid_map", "0 1000 1"), ("gid_map", "0 1000 1")):
    open(f"/proc/self/{name}", "w").write(text)
assert libc.mount(sys.argv[1].encode(), sys.argv[2].encode(), b"tmpfs", 0, b"") == 0, os.strerror(ctypes.get_errno())
print("mounted", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def tmpfs_of_a_user(source: str, point: Path) -> Iterator[None]:
    """A user without rights has mounted a tmpfs from a source of that name, in a namespace of his own."""

    def become() -> None:
        os.setgroups([])
        os.setgid(1000)
        os.setuid(1000)

    # An interpreter that this user may run: CLONE_NEWUSER is refused in the chroot that the guest's tests are in.
    call = ["/usr/bin/python3", "-c", MOUNT, source, str(point)]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=become, cwd="/") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"mounted\n"
        yield
        assert process.stdin is not None
        process.stdin.close()


def test_source_of_a_users_mount_is_only_a_text(disk: HostDevice, node: Path) -> None:
    with tmpfs_of_a_user(str(node), Path("/var")):
        assert any(str(node) in path.read_text() for path in Path("/proc").glob("[0-9]*/mountinfo"))
        assert uses.refusals(disk) == ()


@pytest.mark.parametrize("odd", ["\u2028", "\r", "\f", "\x85", "\n", " ", "\\"], ids=ascii)
def test_mount_point_with_odd_characters(
    disk: HostDevice, node: Path, run: Runner, tmp_path: Path, odd: str, refused: Callable[[HostDevice], Refusals]
) -> None:
    run("mkfs.ext4", "-q", node)
    with mounted(run, node, tmp_path / f"a{odd}b") as point:
        ((_, kind, reason),) = refused(disk)  # type: ignore[misc]
        assert (kind, reason.startswith("it holds the filesystem mounted on /")) == ("mounted", True)
        assert point.is_mount()
