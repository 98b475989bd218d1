"""`pyiommufd guest` from outside: real guests, of the kernel that the command would choose."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd.cli.guest import guest as command
from tests.boot.processes import qemu_of, wait_gone
from tests.patience import patience, until

pytestmark = pytest.mark.boots

GUEST = [sys.executable, "-m", "pyiommufd.cli", "guest"]

LISTING = r"""
for device in /sys/bus/pci/devices/*; do
    driver=none; [ -e $device/driver ] && driver=$(basename $(readlink $device/driver))
    echo $(basename $device) $(cat $device/vendor):$(cat $device/device) \
        $(basename $(readlink $device/iommu_group)) $driver
done
"""


def guest(
    *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GUEST, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | (env or {}),
        timeout=patience(),
        check=False,
    )


@contextlib.contextmanager
def launched(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher, killed in the end; its temporary folders are in the one given."""
    process = subprocess.Popen(
        [*GUEST, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def running_in(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A launcher whose command has said that it runs."""
    with launched(folder, "--", "sh", "-c", "echo running; sleep 600") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        yield process


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """As `running_in`."""
    with running_in(tmp_path) as process:
        yield process


def test_devices_are_in_groups_as_promised() -> None:
    result = guest("--", "sh", "-c", f"test -c /dev/iommu && {LISTING}")
    assert result.returncode == 0, result.stderr
    devices = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    group = {name: facts[1] for name, facts in devices.items()}
    assert devices["0000:00:01.0"][0] == "0x1234:0x11e8"
    assert [name for name in group if group[name] == group["0000:00:01.0"]] == ["0000:00:01.0"]
    shared = [name for name in group if group[name] == group["0000:02:01.0"]]
    assert shared == ["0000:01:00.0", "0000:02:01.0", "0000:02:02.0", "0000:02:03.0"]
    assert [devices[name][0] for name in shared[1:]] == ["0x1234:0x11e8", "0x1234:0x11e8", "0x1af4:0x1044"]
    assert [devices[name][2] for name in shared] == ["none", "none", "none", "virtio-pci"]


def test_devices_named_replace_the_default_ones() -> None:
    """What QEMU is given besides, as it is, goes with either."""
    devices = ["--device", "edu,addr=5", "--device", "nvme,serial=a,,b,addr=6"]
    result = guest(*devices, "--qemu-arg", "-device", "--qemu-arg=edu,addr=7", "--", "sh", "-c", LISTING)
    names = {line.split()[0] for line in result.stdout.splitlines()}
    assert {"0000:00:05.0", "0000:00:06.0", "0000:00:07.0"} < names
    assert not any(name.startswith("0000:02") for name in names)


BIND = """
from pyiommufd import IOMMUFD, list_devices, plan_claim
edu = next(device for device in list_devices("pci") if device.vendor_id == 0x1234)
with plan_claim(edu).apply() as claim, IOMMUFD() as iommufd:
    print("bound", iommufd.bind(claim.devices[0]).name)
"""


def test_examples_of_help(tmp_path: Path) -> None:
    """The options and the command that its help gives as examples, as they stand there, in one guest."""
    text = " ".join([command.help or "", *(getattr(option, "help", None) or "" for option in command.params)])
    options = re.findall(r"--qemu-arg \S+ --qemu-arg \S+(?=\. )|--append \S+=\S+(?=\. )", f"{text} ")
    (archive,) = re.findall(r"tar -cf \S+ FOLDER", text)
    assert len(options) == 2
    script = f"set -e; mkdir FOLDER; echo kept >FOLDER/file; {archive}; python -c {shlex.quote(BIND)}; {LISTING}"
    arguments = ["--iommu", "virtio", *shlex.split(" ".join(options)), "--results", str(tmp_path)]
    result = guest(*arguments, "--", "sh", "-c", script)
    assert result.returncode == 0, result.stderr
    bound, *devices = result.stdout.splitlines()
    assert bound.startswith("bound 0000:")
    assert "0x1b36:0x000d" in [line.split()[1] for line in devices]  # qemu-xhci
    with tarfile.open(tmp_path / "all.tar") as found:
        assert found.getnames() == ["FOLDER", "FOLDER/file"]


NO_IOMMU = """
ls /sys/kernel/iommu_groups
pyiommufd explain bind EPERM 1234:11e8
pyiommufd claim 1234:11e8; echo "status $?"
pyiommufd plan --force noiommu 1234:11e8 >/dev/null; echo "status $?"
pyiommufd claim --force noiommu 1234:11e8; echo "status $?"
echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode
pyiommufd claim --force noiommu 1234:11e8 && pyiommufd release 1234:11e8; echo "status $?"
"""


def test_no_iommu() -> None:
    """No group; a claim is refused before anything is changed, and with force the kernel refuses it, or takes it."""
    result = guest("--iommu", "none", "--device", "edu", "--", "sh", "-c", NO_IOMMU)
    lines = [line for line in result.stdout.splitlines() if line.startswith("status")]
    assert lines == ["status 3", "status 0", "status 1", "status 0"], result.stdout + result.stderr
    assert "  1. no IOMMU: " in result.stdout
    assert "  2. " not in result.stdout
    assert "no IOMMU: " in result.stderr
    assert "[noiommu]" in result.stderr
    off = "vfio's enable_unsafe_noiommu_mode is on (echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode)"
    assert f"to override, once {off}: --force noiommu" in result.stderr
    assert f"forced: the claim fails unless {off}" in result.stderr
    _, refused, causes = result.stderr.partition("rolled back: 0000:00:01.0: bind to vfio-pci: Invalid argument\n")
    assert refused
    assert [line.strip()[:15] for line in causes.splitlines()[:2]] == ["vfio takes a de", "no IOMMU: this "]
    assert "echo 1 > /sys/module/vfio" in causes.splitlines()[0]


def test_virtio_iommu_groups_each_device_alone() -> None:
    result = guest("--iommu", "virtio", "--", "sh", "-c", LISTING)
    groups = [line.split()[2] for line in result.stdout.splitlines() if "0x1234:0x11e8" in line]
    assert len(groups) >= 2, result.stderr
    assert len(set(groups)) == len(groups)


@pytest.mark.parametrize(
    ("command", "status"),
    [(["true"], 0), (["sh", "-c", "exit 42"], 42), (["sh", "-c", "kill -SEGV $$"], 128 + signal.SIGSEGV)],
)
def test_exit_status_is_the_commands(command: list[str], status: int) -> None:
    result = guest("--", *command)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", "")


def test_program_that_is_not_there() -> None:
    result = guest("--", "no-such-program")
    assert result.returncode == 127
    assert "no-such-program: No such file" in result.stderr


def test_output_comes_apart_and_whole() -> None:
    program = "import sys\nfor n in range(20000): print(n); n % 1000 or print('e', n, file=sys.stderr)"
    result = guest("--", "python", "-c", program)
    assert result.returncode == 0
    assert result.stdout.splitlines() == [str(n) for n in range(20000)]
    assert result.stderr.splitlines() == [f"e {n}" for n in range(0, 20000, 1000)]


def test_environment_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a folder, with 'odd' names"
    folder.mkdir()
    (folder / "here").write_text("from the host")
    program = (
        "import os, sys, pyiommufd\n"
        "print(sys.executable, sys.prefix, os.getcwd(), open('here').read(), sep='\\n')\n"
        "print(os.environ.get('SECRET_TOKEN'))\n"
        "open('scratch', 'w').write('x'); os.rename('here', 'there'); os.remove('there'); os.mkdir('here')"
    )
    result = guest("--", "python", "-c", program, cwd=folder, env={"SECRET_TOKEN": "secret"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [sys.executable, sys.prefix, str(folder), "from the host", "None"]
    assert [path.name for path in folder.iterdir()] == ["here"]
    assert (folder / "here").read_text() == "from the host"


def test_results_are_kept_and_nothing_else_is_writable(tmp_path: Path) -> None:
    results = tmp_path / "results"
    script = "echo kept > $PYIOMMUFD_RESULTS/file; touch /usr/x 2>&1; touch /results/second; mkdir /results/folder"
    result = guest("--results", str(results), "--", "sh", "-c", script)
    assert "Read-only file system" in result.stdout
    assert result.returncode == 0, result.stderr
    assert (results / "file").read_text() == "kept\n"
    assert sorted(path.name for path in results.iterdir()) == ["file", "folder", "second"]


MAKE_SPECIAL_FILES = r"""
import os, socket, stat, time
os.umask(0)
os.mkdir("/results/folder")
os.chdir("/results/folder")
for name in ("set-uid", "script", "owned"):
    with open(name, "w") as file:
        file.write("#!/bin/sh\necho runs\n")
os.chmod("set-uid", 0o6755)
os.chmod("script", 0o700)
os.chown("owned", 1234, 5678)
os.mkdir("set-gid")
os.chmod("set-gid", 0o2770)
os.symlink("/etc/passwd", "out")
os.symlink("script", "inside")
os.link("script", "hard")
os.rename("hard", "renamed")
print("done", flush=True)
os.mkfifo("fifo")
socket.socket(socket.AF_UNIX).bind("socket")
os.mknod("device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
os.mknod("disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
print("done", flush=True)
time.sleep(600)
"""

LIST_FILES = r"""
import os, stat, subprocess
os.chdir("/results/folder")
for name in sorted(os.listdir(".")):
    found = os.lstat(name)
    print(name, stat.filemode(found.st_mode), found.st_uid, found.st_nlink)
print(os.readlink("out"), open("device").read(), subprocess.check_output("./inside", text=True), end="", flush=True)
"""

EXPECTED_LIST = """\
device crw-rw-rw- 0 1
disk brw-rw-rw- 0 1
fifo prw-rw-rw- 0 1
inside lrwxrwxrwx 0 1
out lrwxrwxrwx 0 1
owned -rw-rw-rw- 1234 1
renamed -rwx------ 0 2
script -rwx------ 0 2
set-gid drwxrws--- 0 2
set-uid -rwsr-sr-x 0 1
socket srwxrwxrwx 0 1
/etc/passwd  runs
"""


def test_results_give_nobody_rights_here(tmp_path: Path) -> None:
    """What a guest makes is for guests what it is; here it is plain files at any moment, and the guest is killed."""
    results = tmp_path / "results"
    umask = os.umask(0o027)
    try:
        with launched(tmp_path, "--results", str(results), "--", "python", "-c", MAKE_SPECIAL_FILES) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
            process.stdout.readline()  # nothing where the guest was refused the rest
    finally:
        os.umask(umask)
    found = {path.name: path.lstat() for path in results.rglob("*")}
    kinds = {name: (stat.filemode(one.st_mode), one.st_uid, one.st_gid) for name, one in found.items()}
    ids = os.geteuid(), os.getegid()
    names = ["device", "disk", "fifo", "inside", "out", "owned", "renamed", "script", "set-uid", "socket"]
    folders = dict.fromkeys(("folder", "set-gid"), ("drwxr-x---", *ids))
    assert kinds == dict.fromkeys(names, ("-rw-r-----", *ids)) | folders
    assert (results / "folder/out").read_text() == "/etc/passwd"
    again = guest("--results", str(results), "--", "python", "-c", LIST_FILES)
    assert again.stdout == EXPECTED_LIST.replace(" 0 ", f" {ids[0]} "), again.stderr


def test_unused_results_folder_is_removed(tmp_path: Path) -> None:
    unused = guest("--", "true", env={"TMPDIR": str(tmp_path)})
    assert (unused.returncode, unused.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    used = guest("--", "sh", "-c", "echo x > /results/x", env={"TMPDIR": str(tmp_path)})
    (folder,) = tmp_path.iterdir()
    assert f"results in {folder}" in used.stderr
    assert (folder / "x").read_text() == "x\n"


def test_folders_outside_are_invisible(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    work = tmp_path / "work"
    work.mkdir()
    script = f"ls {tmp_path}; cat /etc/shadow; ls -A /root /home /var/lib; ls /boot /opt /srv /var/log"
    result = guest("--", "sh", "-c", script, cwd=work)
    assert result.stdout.splitlines()[0] == "work"
    assert "/etc/shadow: No such file" in result.stderr
    assert "secret" not in result.stdout
    seen = guest("--mount", str(tmp_path / "outside"), "--", "cat", f"{tmp_path}/outside/secret", cwd=work)
    assert seen.stdout == "secret", seen.stderr


def test_memory_cpus_and_kernel_arguments() -> None:
    result = guest("--cpus", "3", "--memory", "768", "--append", "hugepages=8 quiet", "--", "sh", "-c",
                   "nproc; grep MemTotal /proc/meminfo; cat /proc/sys/vm/nr_hugepages")  # fmt: skip
    cpus, memory, pages = result.stdout.splitlines()
    assert cpus == "3"
    assert 640 << 10 < int(memory.split()[1]) < 768 << 10
    assert pages == "8"


def test_panic_is_told_with_the_console(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    # By the folder's list: the guest remembers of a name that there was no such file.
    script = (
        f"echo before; until ls {shared} | grep -q seen; do sleep 0.1; done; echo c > /proc/sysrq-trigger; sleep 60"
    )
    with launched(tmp_path, "--mount", str(shared), "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "before\n"  # what is on its way dies with the kernel
        (shared / "seen").touch()
        stdout, stderr = process.communicate(timeout=patience())
    assert process.returncode == 125
    assert stdout == ""
    assert "Kernel panic - not syncing: sysrq triggered crash" in stderr
    assert "Call Trace" in stderr


def test_guest_that_turns_itself_off() -> None:
    result = guest("--", "sh", "-c", "/.guest/busybox poweroff -f; sleep 60")
    assert result.returncode == 125
    assert "it turned itself off" in result.stderr


def test_time_limit_ends_a_command() -> None:
    result = guest("--timeout", f"{patience(8):.0f}", "--", "sleep", "4000")  # longer than `guest` waits
    assert result.returncode == 125
    assert "time limit" in result.stderr


def test_time_limit_ends_a_guest_that_hangs() -> None:
    limit = f"{patience(10):.0f}"
    process = subprocess.Popen(
        [*GUEST, "--timeout", limit, "--", "sh", "-c", "echo hangs > /dev/console; echo running; sleep 600"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    qemu = qemu_of(process.pid)
    os.kill(qemu, signal.SIGSTOP)  # as a hung machine: nothing in it answers any more
    _, stderr = process.communicate(timeout=patience())
    assert process.returncode == 125
    assert "does not answer" in stderr
    assert "hangs" in stderr
    wait_gone(qemu)


def test_kernel_that_qemu_refuses(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(0x202) + b"HdrS" + bytes(0x2000))
    result = guest("--kernel", f"{tmp_path}/image", "--", "true")
    assert result.returncode == 125
    assert "the guest died" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_launcher_and_guest(running: subprocess.Popen[str], number: signal.Signals) -> None:
    qemu = qemu_of(running.pid)
    running.send_signal(number)
    assert running.wait(patience()) == 128 + number
    wait_gone(qemu)


def test_killed_launcher_takes_the_guest_along(running: subprocess.Popen[str]) -> None:
    qemu = qemu_of(running.pid)
    running.kill()
    running.wait()
    wait_gone(qemu)


def test_folders_of_a_killed_launcher_go_with_the_next_start(running: subprocess.Popen[str], tmp_path: Path) -> None:
    left = set(tmp_path.iterdir())
    assert len(left) == 2  # QEMU's, and one for results
    with running_in(tmp_path) as other:
        others = set(tmp_path.iterdir()) - left
        qemu = qemu_of(running.pid)
        running.kill()
        running.wait()
        wait_gone(qemu)
        assert set(tmp_path.iterdir()) == left | others
        result = guest("--", "true", env={"TMPDIR": str(tmp_path)})
        assert (result.returncode, result.stderr) == (0, "")
        assert set(tmp_path.iterdir()) == others
        assert other.poll() is None


def test_broken_pipe_ends_all() -> None:
    process = subprocess.Popen(
        [*GUEST, "--", "sh", "-c", "while :; do echo again; done"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"again\n"
    qemu = qemu_of(process.pid)
    process.stdout.close()
    assert process.wait(patience()) == 128 + signal.SIGPIPE
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    wait_gone(qemu)


def test_two_at_once(tmp_path: Path) -> None:
    """Each ends only once both run."""
    processes = []
    script = "touch /results/runs; until [ -e /results/go ]; do sleep 0.1; done; echo {} > /results/name"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        command = [*GUEST, "--results", str(tmp_path / name), "--", "sh", "-c", script.format(name)]
        processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
    until(lambda: all((tmp_path / name / "runs").exists() for name in ("one", "two")), "both guests run")
    for name in ("one", "two"):
        (tmp_path / name / "go").touch()
    assert [process.wait(patience()) for process in processes] == [0, 0]
    assert [(tmp_path / name / "name").read_text() for name in ("one", "two")] == ["one\n", "two\n"]


def test_without_busybox(tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None or Path(busybox).parent not in map(Path, ("/usr/bin", "/bin")):
        pytest.skip("busybox is not where the distribution has it")
    # A busybox that needs a loader is of no use: the guest has none yet when it starts.
    (tmp_path / "busybox").symlink_to("/bin/sh")
    result = guest("--", "true", env={"PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert result.returncode == 125
    assert "apt-get install busybox-static" in result.stderr
