"""What `import pyiommufd` costs and offers."""

from __future__ import annotations

import subprocess
import sys
from types import FunctionType

import pyiommufd


def test_import_loads_no_more_than_it_needs() -> None:
    code = "import sys, pyiommufd; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "pyiommufd" in loaded
    assert loaded.isdisjoint({"click", "pytest", "pyudev", "numpy", "asyncio", "pycparser", "hypothesis"})
    assert "pyiommufd.testing" not in done.stdout.split()
    assert "pyiommufd.cli" not in done.stdout.split()


def test_import_configures_no_logging() -> None:
    code = "import logging, pyiommufd; print(logging.root.handlers, logging.getLogger('pyiommufd').level)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] 0\n"
    assert done.stderr == ""


def test_public_names_are_there() -> None:
    for name in pyiommufd.__all__:
        public = getattr(pyiommufd, name)
        # A type alias has no docstring of its own.
        assert public.__doc__ or not isinstance(public, type | FunctionType), name
    wanted = """IOMMUFD IOAS Device DeviceFile Region DMAMapping DMABuffer HostDevice Group find_device list_devices
        find_group list_groups plan_claim ClaimPlan Claim recover Monitor"""
    assert set(wanted.split()) <= set(pyiommufd.__all__)
