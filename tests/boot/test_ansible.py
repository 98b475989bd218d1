"""The Ansible example against two guests, over ssh on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiommufd.testing import Edu, Guest, SharedGroup, VirtioRng
from tests.patience import patience, until

pytestmark = pytest.mark.boots

PLAY = Path("examples/ansible/claim.yml").absolute()
SECONDS = 600.0
LOG = "/tmp/sshd.log"  # noqa: S108 - the guest's
DRIVERS = "cd /sys/bus/pci/devices; for at in *; do echo $at $(basename $(readlink $at/driver || echo none)); done"

SSHD = """\
Port 22
HostKey /etc/ssh/host_key
AuthorizedKeysFile /root/.ssh/authorized_keys
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
Subsystem sftp internal-sftp
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ansible")


@pytest.fixture(scope="module")
def ansible(folder: Path) -> Path:
    """ansible-playbook, in an environment of its own."""
    venv.create(folder / "venv", with_pip=True)
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "ansible-core"]
    subprocess.run(pip, check=True)
    return folder / "venv/bin/ansible-playbook"


@pytest.fixture(scope="module")
def sshd(folder: Path) -> Path:
    """OpenSSH's server, unpacked and not installed: an installed one would be started on this machine."""
    if shutil.which("apt-get") is None or shutil.which("ssh") is None:
        pytest.skip("it takes apt-get for the server of ssh, and its client")
    packages = folder / "packages"
    packages.mkdir()
    download = ["apt-get", "-qq", "download", "openssh-server", "libwrap0"]
    if subprocess.run(download, cwd=packages, check=False).returncode:
        # The package lists may be older than what is on offer, or not there.
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        subprocess.run(download, cwd=packages, check=True)
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "sshd")], check=True)
    return folder / "sshd"


@pytest.fixture(scope="module")
def key(folder: Path) -> Path:
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    return folder / "key"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Host:
    """A guest that listens for ssh."""

    def __init__(self, sshd: Path, key: Path) -> None:
        self.port = free_port()
        # Nothing but this machine gets in, and nothing gets out.
        network = f"user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22"
        self.guest = Guest(
            devices=[Edu(), SharedGroup(Edu(), VirtioRng())],
            read_only=[sshd],
            memory=768,
            qemu_arguments=["-netdev", network, "-device", "virtio-net-pci,netdev=n,addr=0x1b"],
        )
        self._sshd, self._key = sshd, key

    def start(self) -> None:
        guest = self.guest
        guest.start()
        passwd = guest.get("/etc/passwd").decode()
        guest.put(f"{passwd}sshd:x:990:65534::/run/sshd:/usr/sbin/nologin\n".encode(), "/etc/passwd")
        # No password, which is not a locked account.
        guest.put(b"root:*:20000::::::\n", "/etc/shadow", mode=0o600)
        guest.run(["mkdir", "-p", "/etc/ssh", "/root/.ssh", "/run/sshd"], check=True)
        guest.put(self._key.with_name("host_key").read_bytes(), "/etc/ssh/host_key", mode=0o600)
        guest.put(self._key.with_name("key.pub").read_bytes(), "/root/.ssh/authorized_keys", mode=0o600)
        guest.put(SSHD.encode(), "/etc/ssh/sshd_config")
        guest.run(["sh", "-c", "ifconfig $(ls /sys/class/net | grep ^e) 10.0.2.15 up"], check=True)
        libraries = ":".join(f"{self._sshd}/{name}/x86_64-linux-gnu" for name in ("lib", "usr/lib"))
        # In the background by the shell's doing: as a child of process 1 sshd takes itself to be a daemon already.
        server = f"{self._sshd}/usr/sbin/sshd -D -E {LOG} </dev/null >/dev/null 2>&1 &"
        guest.run(["sh", "-c", server], env={"LD_LIBRARY_PATH": libraries}, check=True)
        until(self._answers, lambda: guest.run(["cat", LOG]).stdout.decode())

    def _answers(self) -> bool:
        """Whether the server is there: QEMU takes connections before it is, and closes them."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience()) as connection:
            try:
                return connection.recv(4) == b"SSH-"
            except OSError:
                return False

    def drivers(self) -> dict[str, str]:
        shown = self.guest.run(["sh", "-c", DRIVERS], check=True).stdout.decode()
        return dict(line.partition(" ")[::2] for line in shown.splitlines())


@pytest.fixture(scope="module")
def hosts(sshd: Path, key: Path) -> Iterator[list[Host]]:
    hosts = [Host(sshd, key), Host(sshd, key)]
    try:
        for host in hosts:
            host.start()
        yield hosts
    finally:
        for host in hosts:
            host.guest.close()


def play(ansible: Path, hosts: list[Host], key: Path, *arguments: str) -> str:
    inventory = key.with_name("hosts.ini")
    common = f"ansible_host=127.0.0.1 ansible_user=root ansible_python_interpreter={sys.executable}"
    lines = [f"{name} ansible_port={host.port} {common}" for name, host in zip(("one", "two"), hosts, strict=True)]
    inventory.write_text("\n".join(lines) + "\n")
    ssh = f"-F none -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile={key.with_name('known')}"
    command = [str(ansible), "-i", str(inventory), str(PLAY), "-e", "devices=1234:11e8"]
    command += [
        "-e",
        f"pyiommufd={Path(sys.executable).with_name('pyiommufd')}",
        f"--ssh-common-args={ssh}",
        *arguments,
    ]
    environment = {
        **os.environ,
        "ANSIBLE_HOME": str(key.with_name("home")),
        "ANSIBLE_TIMEOUT": f"{patience():.0f}",
        "ANSIBLE_PIPELINING": "1",  # a connection less for each task
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(SECONDS),
        check=False,
        stdin=subprocess.DEVNULL,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_play(ansible: Path, hosts: list[Host], key: Path) -> None:
    before = [host.drivers() for host in hosts]
    shown = play(ansible, hosts, key, "--check")
    assert shown.count('"0000:02:02.0: unbind from virtio-pci"') == 2
    assert [host.drivers() for host in hosts] == before
    shown = play(ansible, hosts, key)
    for name, host in zip(("one", "two"), hosts, strict=True):
        taken = {device: driver for device, driver in host.drivers().items() if driver == "vfio-pci"}
        assert sorted(taken) == ["0000:00:01.0", "0000:02:01.0", "0000:02:02.0"]  # the group's virtio-rng as well
        assert f"{name}: 0000:00:01.0 vfio" in shown
    shown = play(ansible, hosts, key)
    assert shown.count("changed=0") == 2  # there is nothing left to do
    play(ansible, hosts, key, "-t", "release")
    assert [host.drivers() for host in hosts] == before
