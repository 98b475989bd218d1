"""The guard of mapped registers against SIGBUS, beside whoever else handles it."""

from __future__ import annotations

import faulthandler
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patience
from tests.unit.uapi.sigbus_orders import access

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-m", "tests.unit.uapi.sigbus_orders", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(60), check=False)


def test_a_fault_is_the_windows_after_whatever_others_have_set() -> None:
    done = run("guard")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout.splitlines()[-1:]


def test_a_sigbus_from_elsewhere_ends_as_without_a_window() -> None:
    done = run("foreign")
    assert (done.returncode, done.stderr) == (0, "")


def test_handlers_that_forward_do_not_do_so_in_a_circle(tmp_path: Path) -> None:
    library = tmp_path / "chain.so"
    source = Path(__file__).with_name("sigbus_chain.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    done = run("chained", str(library))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout.splitlines()[-1:]


@pytest.mark.parametrize(
    ("steps", "dumped"),
    [
        (["access", "enable", "access"], True),  # the two called each other for ever
        (["enable", "access", "enable", "access"], True),
        (["enable", "access", "disable", "access"], False),  # this took the guard away
        (["access", "enable", "access", "disable", "access"], False),
    ],
)
def test_faulthandler_enabled_and_disabled_between_accesses(steps: list[str], dumped: bool) -> None:
    done = run("after", *steps)
    assert done.returncode == -signal.SIGBUS
    assert ("Fatal Python error: Bus error" in done.stderr) == dumped
    assert done.stderr.count("Fatal Python error") <= 1


def test_faulthandler_from_the_start() -> None:
    for options in (("-X", "faulthandler"), ()):
        done = run("kept", options=options)
        assert done.returncode == -signal.SIGBUS
        assert ("Fatal Python error: Bus error" in done.stderr) == bool(options)


def test_faults_under_pytest() -> None:
    access()
    on = faulthandler.is_enabled()
    faulthandler.disable()
    access()
    if on:
        faulthandler.enable()
        access()
