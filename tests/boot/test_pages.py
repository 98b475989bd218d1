"""Every block of every page, as it stands there; see `tests.pages.blocks`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.guest_pytest import ENVIRONMENT, PYTEST
from tests.pages.blocks import HERE, ROOT, machines, pages
from tests.pages.machines import MACHINES
from tests.patience import patience

pytestmark = pytest.mark.boots

SECONDS = 1800.0


def arguments(machine: str) -> list[str]:
    """What has pytest run the blocks for a machine; the first that fails ends it, as the others build on it."""
    some = [str(page.relative_to(ROOT)) for page in pages() if machine in machines(page)]
    return ["-p", "tests.pages.plugin", "--machine", machine, "-x", "-v", "--durations=5", *some]


def test_here() -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments(HERE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(SECONDS), check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("machine", MACHINES)
def test_in_guest(machine: str) -> None:
    with MACHINES[machine]() as (guest, environment):
        done = guest.run([*PYTEST, *arguments(machine)], env=ENVIRONMENT | environment, timeout=patience(SECONDS))
    print(done.stdout.decode())
    assert done.returncode == 0, done.stderr.decode()
