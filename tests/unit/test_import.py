"""What `import pyiommufd` costs and offers."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FunctionType

import pytest

import pyiommufd

PACKAGES = ("pyiommufd", "pyiommufd.diagnose", "pyiommufd.testing")
"""Those that import what their names stand for when a name is first used."""


def python(code: str) -> str:
    """What the code prints, in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def loaded(code: str) -> set[str]:
    """The modules that are there after the code, without those that every Python has."""
    listing = "import sys; print(*sys.modules)"
    return set(python(f"{code}\n{listing}").split()) - set(python(listing).split())


def test_import_loads_no_more_than_it_needs() -> None:
    modules = loaded("import pyiommufd")
    assert {name for name in modules if name.startswith("pyiommufd")} == {
        "pyiommufd",
        "pyiommufd.on_demand",
        "pyiommufd.version",
    }
    assert modules.isdisjoint({"typing", "dataclasses", "collections", "re"})


def ours(modules: Iterable[str]) -> set[str]:
    """The package's own modules among these, without those of the compiled extension and of packages alone."""
    found = {name.removeprefix("pyiommufd.") for name in modules if name.startswith("pyiommufd.")}
    return {name for name in found if not name.startswith("_")} - {"kernel", "kernel.memory", "uapi", "version"}


DISCOVERY = {"aliases", "devices", "groups", "kernel_names", "lookup", "power", "reset", "sriov", "vf_token"}
"""What of `pyiommufd.host.discovery` a device takes."""

SLOW = {
    "typing",
    "dataclasses",
    "inspect",
    "enum",
    "re",
    "pathlib",
    "logging",
    "threading",
    "collections",
    "subprocess",
}
"""Modules of Python's own each of which takes as long to import as some ten of ours."""


def test_iommufd_loads_no_more_than_it_needs() -> None:
    """What it makes, and what explains a refusal, comes when it is used."""
    modules = loaded("from pyiommufd import IOMMUFD")
    assert ours(modules) == {
        "closing",
        "diagnose",
        "errors",
        "kernel.handle",
        "kernel.iommufd",
        "kernel.kernel_object",
        "kernel.objects",
        "light_typing",
        "on_demand",
        "printable",
        "uapi.ioctls",
        "uapi.fast",
    }
    assert modules.isdisjoint(SLOW)


def test_names_load_no_more_than_they_need() -> None:
    of_all = {name.partition(".")[0] for name in loaded("from pyiommufd import *")}
    assert of_all.isdisjoint({"click", "pytest", "pyudev", "numpy", "asyncio", "pycparser", "hypothesis"})
    discovery = loaded("from pyiommufd import list_devices")
    assert {name for name in discovery if name.startswith("pyiommufd.kernel")} == set()
    assert discovery.isdisjoint({"_cffi_backend", "logging", "subprocess", "socket", "json"})
    memory = loaded("from pyiommufd import IOAS, DMABuffer")
    assert {name.partition(".")[0] for name in ours(memory)}.isdisjoint({"host", "causes"})
    assert memory.isdisjoint({"logging", "subprocess", "threading", "json"})
    device = ours(loaded("from pyiommufd import Device, DeviceFile"))
    assert {name.partition(".")[0] for name in device} >= {"kernel", "host"}
    assert {name for name in device if name.startswith(("host.", "diagnose."))} <= {
        "host.discovery",
        "host.sysfs",
        *(f"host.discovery.{name}" for name in DISCOVERY),
    }
    rooms = {"virtual", "pagetables.hwpt", "pagetables.nested", "device.device_info", "device.graphics", "window"}
    assert device.isdisjoint({f"kernel.{room}" for room in rooms})


def by_command(*arguments: str) -> set[str]:
    """The modules that are there after a command, without those that every Python has."""
    return loaded(f"""
import os, sys
from pyiommufd.cli.__main__ import main

sys.argv = ["pyiommufd", *{arguments}]
stdout = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
try:
    main()
except SystemExit:
    sys.stdout.flush()
os.dup2(stdout, 1)
""")


def test_commands_load_no_more_than_they_need() -> None:
    help_text = by_command("--help")
    assert ours(help_text) == {
        "causes",
        "cli",
        "cli.__main__",
        "cli.completion",
        "cli.group",
        "cli.output",
        "cli.status",
        "errors",
        "host",
        "host.namespaces",
        "host.sysfs",
        "light_typing",
        "nearest",
        "on_demand",
        "printable",
    }
    assert help_text.isdisjoint({"json", "subprocess", "socket", "pyudev", "ctypes", "asyncio"})
    listing = by_command("list")
    assert {name.partition(".")[0] for name in ours(listing)}.isdisjoint(
        {"kernel", "uapi", "diagnose", "testing", "vmm"}
    )
    of_claims = {name for name in ours(listing) if name.startswith("host.claims.")}
    assert of_claims <= {"host.claims.members", "host.claims.steps"}
    assert listing.isdisjoint({"_cffi_backend", "json", "gzip", "tomllib", "asyncio"})


def test_garbage_is_collected_while_a_command_runs() -> None:
    """Not while it is imported."""
    code = """
import atexit, gc, sys
from pyiommufd.cli.__main__ import main

atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 1000))
sys.argv = ["pyiommufd", "list", "--help"]
main()
"""
    assert python(code).splitlines()[-1] == "True True"


def places(package: str) -> dict[str, str]:
    """The names of a package, and the module of each, by the imports that only type checkers read."""
    file = importlib.import_module(package).__file__
    assert file is not None
    (block,) = [node for node in ast.parse(Path(file).read_text()).body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {
        each.name: str(node.module)
        for node in imports
        for each in node.names
        if str(node.module).startswith(f"{package}.")
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_names_are_those_of_type_checkers(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(places(package)) == sorted(module.__all__)
    for name, place in places(package).items():
        assert getattr(module, name) is getattr(importlib.import_module(place), name)
    assert set(module.__all__) <= set(dir(module))
    assert set(module.__all__) <= set(python(f"from {package} import *; print(*dir())").split())


@pytest.mark.parametrize("package", PACKAGES)
def test_each_module_can_be_the_first(package: str) -> None:
    """They import each other, in the order in which a program happens to use their names."""
    names = list({place: name for name, place in places(package).items()}.values())
    code = f"""
import os, {package} as package
for name in {names}:
    if (child := os.fork()) == 0:
        getattr(package, name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""
    assert python(code) == ""


def test_each_cause_can_be_the_first_that_is_looked_for() -> None:
    """In the handler of the refusal, which is raised as it was where its causes cannot be imported."""
    code = """
import os
from pyiommufd import IoctlError, diagnose

for name in diagnose.__all__:
    if (child := os.fork()) == 0:
        try:
            raise IoctlError("open", 1)
        except IoctlError:
            getattr(diagnose, name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""
    assert python(code) == ""


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'pyiommufd' has no attribute 'IOMMUFDs'"):
        pyiommufd.IOMMUFDs  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(pyiommufd, "__wrapped__")
    modules = ("diagnose", "errors", "host", "kernel", "on_demand", "uapi")
    assert set(modules) <= set(dir(pyiommufd))
    for module in modules:
        assert python(f"import pyiommufd; print(pyiommufd.{module}.__name__)") == f"pyiommufd.{module}\n"


def test_refusal_without_an_fd_left_to_look_for_causes_is_raised_all_the_same() -> None:
    """The modules that look cannot be imported then."""
    code = """
import errno, os, resource
from pyiommufd import IOMMUFD, IoctlError

free = os.dup(0)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
try:
    IOMMUFD()
except IoctlError as error:
    print(errno.errorcode[error.errno], error.request, error.causes)
"""
    assert python(code) == "EMFILE open ()\n"


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
