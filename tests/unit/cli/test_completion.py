"""Completion in the shells themselves, on a terminal: what is on the line after the tabulator."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.fake_sysfs import FakeSysfs
from tests.terminal import end_of, on_terminal

SHELLS = {
    "bash": ["bash", "--norc", "--noprofile"],
    "zsh": ["zsh", "-f"],
    "fish": ["fish", "--no-config"],
}
SETUP = {
    "bash": 'eval "$(_PYIOMMUFD_COMPLETE=bash_source pyiommufd)"',
    "zsh": 'autoload -U compinit; compinit -u -D; eval "$(_PYIOMMUFD_COMPLETE=zsh_source pyiommufd)"',
    "fish": "_PYIOMMUFD_COMPLETE=fish_source pyiommufd | source",
}
PROGRAM = """\
#!{python}
from pathlib import Path
from pyiommufd.host import sysfs
sysfs.SYS = Path({root!r})
from pyiommufd.cli.__main__ import main
main()
"""


@pytest.fixture(params=SHELLS)
def shell(
    request: pytest.FixtureRequest, fake: FakeSysfs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[pexpect.spawn[str]]:
    """A shell that has run what README says, on a machine made for it."""
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not here: tests/environment could not install it")
    fake.pci("0000:01:00.0", group=2, driver="nvme")
    fake.pci("0000:01:00.1", group=2, ids=(0x1234, 0x0001))
    network = fake.pci("0000:00:03.0", group=3, driver="e1000e", ids=(0x8086, 0x10FB))
    fake.interface(network, "enp0s3")
    fake.interface(network, "shell$(touch${IFS}made)")
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "pyiommufd"
    program.write_text(PROGRAM.format(python=sys.executable, root=str(fake.root)))
    program.chmod(0o755)
    (folder / "pyiommufd-some").touch()
    (folder / "of-others;touch made").touch()
    (folder / "devices/0000:00:03.0").mkdir(parents=True)
    (folder / "devices/0000:00:03.0/ven:dor").touch()
    path = f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "TERM": "dumb", "HOME": str(folder), "EDITOR": "", "VISUAL": ""}
    terminal = on_terminal(*SHELLS[name], environment=environment)
    terminal.sendline(f"{SETUP[name]}; cd; echo rea''dy")
    terminal.expect_exact("ready")
    yield terminal
    terminal.sendline("exit 0")
    end_of(terminal)


def test_words(shell: pexpect.spawn[str]) -> None:
    for typed, completed in (
        ("show 0000:00", "show 0000:00:03.0"),
        ("show 00:", "show 00:03.0"),
        ("show 'en", "show enp0s3"),
        ("list --driver=nv", "list --driver=nvme"),
        ("guest --kernel=pyiommufd-s", "guest --kernel=pyiommufd-some"),
        ("list 8086:", "list 8086:10fb"),
        ("caps 8086:", "caps 8086:10fb"),
        ("plan 1234:00", "plan 1234:0001"),
        ("show pci_0000_00", "show pci_0000_00_03_0"),
        ("show 0:3", "show 0:3.0"),
        ("show devices/0000:00:03", "show devices/0000:00:03.0"),
        ("show devices/0000:00:03.0/v", "show devices/0000:00:03.0/ven:dor"),
        ("guest --kernel devices/0000:", "guest --kernel devices/0000:00:03.0"),
        ("guest --kernel=devices/0000:", "guest --kernel=devices/0000:00:03.0"),
        ("plan 00:03.0 01:00.", "plan 00:03.0 01:00."),  # two devices
        ("explain VFIO_DEVICE_B", "explain VFIO_DEVICE_BIND_IOMMUFD"),
        ("show she", "show she"),
        ("guest --kernel of-o", "guest --kernel of-others;touch made"),
        ("guest --kernel=of-o", "guest --kernel=of-others;touch made"),
    ):
        # The line is then printed in place of being run.
        shell.send(f"pyiommufd {typed}\t\x01printf '<%s>' \x05 end\r")
        shell.expect("<pyiommufd><(.*)><end>")
        assert isinstance(shell.match, re.Match)
        # zsh takes the slash of a folder away when the cursor moves.
        assert str(shell.match[1]).replace("><", " ").rstrip("/") == completed
