"""The pytest plugin: ``pytest --guest`` runs the tests in a QEMU guest with a virtual IOMMU.

Loaded by every pytest of an environment that has this package, so it imports what is heavy only where it is used.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

import pytest

from pyiommufd.testing.plugin.marker import MARKER, wishes

# As in `machine`, which is not imported for them.
IOMMUS = ("intel", "intel-first-stage", "amd", "virtio", "none", "smmuv3", "smmuv3-nested")

# What is wrong with a test's marker.
_WRONG = pytest.StashKey[str]()

pytest_plugins = ["pyiommufd.testing.plugin.fixtures"]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a positive number of seconds is wanted, not {text!r}")
    return value


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("guest", "tests in a QEMU guest with a virtual IOMMU (pyiommufd)")
    group.addoption("--guest", action="store_true", help="run the tests in a guest and report them here")
    group.addoption(
        "--guest-iommu",
        choices=IOMMUS,
        metavar="KIND",
        help=f"the guest's IOMMU where a test does not choose it: {', '.join(IOMMUS)} [intel; smmuv3 on aarch64]",
    )
    group.addoption(
        "--guest-kernel",
        metavar="FILE",
        help="the kernel image to boot where a test does not choose it, or the version of one that "
        "`pyiommufd guest --build-kernel` made [PYIOMMUFD_KERNEL]",
    )
    group.addoption("--guest-qemu", metavar="PROGRAM", help="the QEMU to run [PYIOMMUFD_QEMU]")
    group.addoption(
        "--guest-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="the time that one test in the guest may take; then it has failed and the next run in a new guest [600]",
    )
    group.addoption(
        "--guest-shell",
        action="store_true",
        help="at the first failure open a shell in the guest, before anything of the test is torn down",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and, with ``--guest``, what runs the tests.

    Raises:
        pytest.UsageError: Options that exclude each other.
    """
    config.addinivalue_line("markers", MARKER)
    if not config.getoption("guest"):
        if config.getoption("guest_shell"):
            raise pytest.UsageError("--guest-shell is of use with --guest only")
        return
    if config.getoption("usepdb"):
        raise pytest.UsageError("--pdb does not reach into the guest: --guest-shell opens a shell there")
    from pyiommufd.testing.plugin.guest_session import GuestController, GuestSession, GuestWorker

    kind: type[GuestController | GuestSession | GuestWorker] = GuestSession
    if hasattr(config, "workerinput"):
        kind = GuestWorker
    elif getattr(config.option, "dist", "no") != "no" and not config.getoption("collectonly"):
        if config.getoption("guest_shell"):
            raise pytest.UsageError("--guest-shell and -n exclude each other: a worker has no terminal")
        kind = GuestController
    config.pluginmanager.register(kind(config), "pyiommufd-guest-session")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which options have no effect. They may be in an ini file, so they are no error."""
    given = [name for name in ("iommu", "kernel", "qemu", "timeout") if config.getoption(f"guest_{name}") is not None]
    if not given or config.getoption("guest"):
        return None
    return f"guest: none; of use with --guest only: {', '.join(f'--guest-{name}' for name in given)}"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Have the traceback of a user's error end at the user's line; this package's own tests see all of it."""
    package = Path(__file__).parents[2]
    if call.excinfo is not None and item.config.rootpath != package.parent:
        from pyiommufd.testing.plugin.own_frames import hide_own_frames

        hide_own_frames(call.excinfo.value)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--guest``, skip the tests that this machine cannot run."""
    chosen_already = config.getoption("guest") or config.pluginmanager.hasplugin("pyiommufd-in-guest")
    if chosen_already or config.getoption("collectonly"):
        return
    reasons: dict[str, pytest.MarkDecorator] = {}
    for item in items:
        try:
            wanted = wishes(item)
            reason = "" if wanted is None else _unable(item, wanted)
        except pytest.UsageError as error:
            if not hasattr(config, "workerinput"):
                raise
            item.stash[_WRONG] = str(error)  # raised here, it would be an internal error of the worker
            continue
        if reason:
            item.add_marker(reasons.setdefault(reason, pytest.mark.skip(reason=reason)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test whose marker is wrong, in a worker of pytest-xdist."""
    if reason := item.stash.get(_WRONG, ""):
        pytest.fail(reason, pytrace=False)


def _unable(item: pytest.Item, wanted: dict[str, Any]) -> str:
    if not Path("/dev/iommu").exists() and wanted.get("iommu") != "none":
        return "this machine has no /dev/iommu: pytest --guest runs the test in a guest that has one"
    if wanted:
        from pyiommufd.testing.plugin.configuration import misfits

        try:
            found = misfits(wanted, os.environ)
        except (TypeError, ValueError) as error:
            raise pytest.UsageError(f"{item.nodeid}: {error}") from None
        if found:
            return f"not the guest that the test wants ({'; '.join(found)}): pytest --guest runs it in one that is"
    return ""
