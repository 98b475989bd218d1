"""What commands print: nothing in it but what is visible, on outputs that take it and on others."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from click.testing import CliRunner

from pyiommufd.cli import output
from pyiommufd.cli.group import cli
from pyiommufd.errors import Refusal
from pyiommufd.host import uses
from pyiommufd.host.holders import Holder
from pyiommufd.host.overview import topology as topology_module
from tests.escapes import CONTROL_TEXT, invisible
from tests.fake_sysfs import FakeSysfs

COMMAND = [sys.executable, "-m", "pyiommufd.cli"]
LINE = f"{CONTROL_TEXT}".replace("\n", "")  # as the kernel gives it, whose attributes end at a newline


@pytest.fixture
def machine(fake: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """A group of two devices, whose drivers, users and holders have names with control sequences."""
    for driver in ("vfio-pci", "nvme"):
        (fake.root / "bus/pci/drivers" / driver).mkdir()
    fake.pci("0000:01:00.0", group=2, driver="nvme", iommu="dmar0")
    fake.pci("0000:01:00.1", group=2, driver="vfio-pci", cdev=0, iommu="dmar0")
    for device in ("0000:01:00.0", "0000:01:00.1"):
        (fake.root / f"devices/pci0000:00/{device}/driver_override").write_bytes(os.fsencode(f"{LINE}\n"))
    held = (Holder(7, CONTROL_TEXT, "/dev/vfio/devices/vfio0", "fd 3"),)
    monkeypatch.setattr("pyiommufd.cli.holders.find_holders", lambda *devices: held)
    monkeypatch.setattr("pyiommufd.host.overview.details.holders_among", lambda processes, devices: held)
    monkeypatch.setattr("pyiommufd.host.claims.refusals.holders_among", lambda processes, devices: held)
    monkeypatch.setattr("pyiommufd.host.rows.holders", lambda *devices: held)
    monkeypatch.setattr(topology_module, "holders", lambda *devices: held)
    monkeypatch.setattr(
        uses,
        "refusals_by",
        lambda snapshot, devices: tuple(
            Refusal(one.name, "mounted", f"it holds the filesystem on {CONTROL_TEXT}") for one in devices
        ),
    )
    return fake


@pytest.mark.parametrize(
    "arguments",
    [
        ["holders", "01:00.1"],
        ["holders", "01:00.1", "--json"],
        ["show", "01:00.0"],
        ["show", "01:00.0", "--json"],
        ["plan", "01:00.0"],
        ["plan", "01:00.0", "--json"],
        ["plan", "01:00.0", "--force", "mounted", "--force", "held"],
        ["plan", "01:00.0", "--force", "mounted", "--force", "held", "--json"],
        ["claim", "01:00.0", "--dry-run"],
        ["topology"],
        ["topology", "--dot"],
        ["topology", "--json"],
        ["explain", "bind", "EINVAL", "01:00.1"],
        ["run", "01:00.0", "--dry-run", "--", "true"],
        [CONTROL_TEXT],
        ["show", CONTROL_TEXT],
        ["show", f"/sys/{CONTROL_TEXT}"],
        ["list", CONTROL_TEXT],
        ["list", f"--{CONTROL_TEXT}"],
        ["list", "--group", CONTROL_TEXT],
        ["claim", "01:00.0", "--user", CONTROL_TEXT],
        ["run", "01:00.0", "--", CONTROL_TEXT],
        ["topology", "--svg", f"/nowhere/{CONTROL_TEXT}"],
    ],
    ids=lambda arguments: ascii(" ".join(arguments)),
)
@pytest.mark.parametrize("color", [False, True])
def test_nothing_invisible_is_printed(machine: FakeSysfs, arguments: list[str], color: bool) -> None:
    result = CliRunner().invoke(cli, arguments, color=color)
    assert isinstance(result.exception, SystemExit | None)
    plain = result.output
    for colour in ("\x1b[0m", "\x1b[1m", "\x1b[2m", *(f"\x1b[{number}m" for number in range(30, 38))) if color else ():
        plain = plain.replace(colour, "")
    assert invisible(plain) == ""
    assert "owned" in plain or "nowhere" in plain
    # Nobody's text begins a line.
    assert not any(line.startswith("forged") for line in plain.splitlines())


def test_json_has_the_very_text(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"text": CONTROL_TEXT, "names": ["é", "\U000e0001"]}
    for indent in (None, 2):
        output.print_json(value, indent=indent)
        text = capsys.readouterr().out
        assert invisible(text) == ""
        assert json.loads(text) == value
        assert "é" in text


def test_columns_are_as_wide_as_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("A", "B"), (("\x1b", "x"), ("four", "y\n")))
    assert capsys.readouterr().out == "A     B\n\\x1b  x\nfour  y\\x0a\n"


def test_a_line_on_a_terminal_is_not_broken_by_what_is_in_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    output.print_indented("seen", CONTROL_TEXT, 2)
    assert invisible(capsys.readouterr().out) == ""


@pytest.mark.parametrize("columns", [60, 130])
def test_lines_are_as_wide_as_the_terminal(columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    program = "from pyiommufd.cli.output import *\nwith streams(): echo(fitted('word ' * 100))"
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    with (
        open(ours, "rb", buffering=0) as terminal,
        subprocess.Popen([sys.executable, "-c", program], stdout=theirs, env=environment),
    ):
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # EIO once the program has ended
            while piece := terminal.read(4096):
                text += piece
    lines = text.decode().splitlines()
    assert columns - len(" word") < max(map(len, lines)) <= columns
    assert all(line.startswith("  word") for line in lines[1:])


def test_what_is_logged_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("test")
    logger.addHandler(output._EchoHandler())
    try:
        raise OSError(28, CONTROL_TEXT)
    except OSError:
        logger.warning("%s has failed", CONTROL_TEXT.replace("\n", ""), exc_info=True)
    said = capsys.readouterr().err
    assert invisible(said) == ""
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("import click\n\nclick.echo(1)\n", "TID251"),
        ("from click import secho\n\nsecho(1)\n", "TID251"),
        ("import click\n\nclick.style('x')\n", "TID251"),
        ("import sys\n\nsys.stdout.write('x')\n", "TID251"),
        ("from sys import stderr\n\nstderr.write('x')\n", "TID251"),
        ("print(1)\n", "T201"),
    ],
)
def test_no_command_prints_by_itself(source: str, rule: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "--stdin-filename"]
    for file in ("pyiommufd/cli/new.py", "pyiommufd/cli/list.py", "pyiommufd/host/new.py"):
        done = subprocess.run([*command, file, "-"], input=source, capture_output=True, text=True, check=False)
        assert rule in done.stdout, (file, done)


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]


READING = [
    ["check"],
    ["check", "--json"],
    ["list", "--json"],
    ["groups", "--json"],
    ["topology", "--dot"],
    ["topology", "--json"],
    ["explain", "bind", "EPERM"],
    ["explain", "bind", "EPERM", "--json"],
    ["man"],
    ["--help"],
    ["list", "--help"],
    ["--version"],
]
"""Commands that have something to print wherever they run; tests/guest/cli/test_output.py has those of devices."""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_disk_is_a_line(unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        for arguments in READING:
            with start(*arguments, stdout=full) as process:
                _, errors = process.communicate()
            assert process.returncode == 3, (arguments, errors)
            said = "pyiommufd: the standard output cannot be written to: No space left on device\n"
            # Before that, of a machine without an IOMMU, that it has none.
            assert errors.endswith(said), arguments
            assert errors.count("\n") <= 2, arguments


def test_closed_or_broken_output_is_silent() -> None:
    for arguments in (["man"], ["--help"], ["explain", "bind", "EPERM", "--json"], ["--version"]):
        with start(*arguments, preexec_fn=lambda: os.close(1)) as process:
            assert (process.wait(), process.stderr and process.stderr.read()) == (0, ""), arguments
        reading, writing = os.pipe()
        os.close(reading)
        with start(*arguments, stdout=writing) as process:
            os.close(writing)
            assert (process.wait(), process.stderr and process.stderr.read()) == (1, ""), arguments


@pytest.mark.parametrize("status", [1, 2])
def test_status_is_kept_where_nobody_can_be_told(status: int) -> None:
    arguments = ["show", "no-such-device"] if status == 1 else ["no-such-command"]
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=full, check=False)
    assert done.returncode == status


def test_terminal_that_lacks_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    done = subprocess.run([*COMMAND, "show", "…"], capture_output=True, check=False)
    assert (done.returncode, b"\\u2026" in done.stderr) == (1, True), done


@pytest.fixture
def without_libudev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which ctypes finds no library: one without libudev, or without what finds it."""
    (tmp_path / "sitecustomize.py").write_text("import ctypes.util\nctypes.util.find_library = lambda name: None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("without_libudev")
@pytest.mark.parametrize(
    "arguments",
    [
        ["check"],
        ["list"],
        ["list", "--json"],
        ["topology"],
        ["watch"],
        ["show", "1234:11e8"],
        ["holders", "1234:11e8"],
        ["plan", "1234:11e8"],
        ["claim", "1234:11e8", "--dry-run"],
        ["claim", "1234:11e8"],
        ["vfs", "1234:11e8"],
        ["explain", "bind", "EPERM", "1234:11e8"],
    ],
    ids=" ".join,
)
def test_missing_libudev_is_a_line(arguments: list[str]) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(
        f"pyiommufd {arguments[0]}: libudev cannot be loaded (No library named udev): install"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("without_libudev")
def test_missing_libudev_in_code() -> None:
    code = """
import pyiommufd
for call in (pyiommufd.list_devices, pyiommufd.Monitor, lambda: pyiommufd.find_device("1234:11e8")):
    try:
        call()
    except pyiommufd.MissingLibraryError as error:
        assert isinstance(error, pyiommufd.IOMMUFDError) and isinstance(error, ImportError), error
        assert "libudev1" in str(error)
    else:
        raise AssertionError(call)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("without_libudev")
def test_missing_libudev_and_the_shell_that_asks_for_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {
        "_PYIOMMUFD_COMPLETE": "bash_complete",
        "COMP_WORDS": "pyiommufd show 0",
        "COMP_CWORD": "2",
    }.items():
        monkeypatch.setenv(key, value)
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    # click's shells call it by the name of the program.
    assert "Traceback" not in done.stderr
