"""The twins on a library whose ioctls do nothing: every one has to fail, or what it asserts is not the kernel's doing.

    python -m tests.conformance.noop setup|call PYTEST ARGUMENTS

The entry points of the extension that issue ioctls succeed without issuing any, from the set-up of each test on, or
from its call on: then the set-up is real, and it is the body of the test that has to notice. The mock IOMMU's test
command goes by another way, and stays.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_MODULE = "pyiommufd._uapi"
_FAILED = 0xFFFF_FFFF_FFFF_FFFF


def _map_many(fd: int, ioas_id: int, flags: int, memory: Any, pieces: Any, count: int) -> int:
    for place in range(2, 3 * count, 3):
        pieces[place] = 0 if pieces[place] == _FAILED else pieces[place]
    pieces[3 * count] = count
    return count


# What the C code returns where the call succeeds and leaves the memory of its command as it was.
_NOOPS = {
    "ioctl": lambda fd, request, argument: 0,
    "destroy": lambda fd, object_id: 0,
    "ioas_alloc": lambda fd: 0,
    "ioas_map": lambda fd, ioas_id, flags, user_va, length, iova: iova,
    "ioas_unmap": lambda fd, ioas_id, iova, length: length,
    "ioas_map_file": lambda fd, ioas_id, flags, file, start, length, iova: iova,
    "ioas_copy": lambda fd, dst_id, flags, src_id, src_iova, length, dst_iova: dst_iova,
    "ioas_map_many": _map_many,
    "ioas_unmap_many": lambda fd, ioas_id, pieces, count: count,
    "ioas_first_hole": lambda fd, ioas_id, iova, length, hole: 0,
    "bind": lambda fd, iommufd, token: 0,
    "attach": lambda fd, pt_id, pasid: pt_id,
    "detach": lambda fd, pasid: 0,
}
# What issues no ioctl.
_HARMLESS = ("ioas_last_map", "ioas_last_unmap", "window_")


class Library:
    """The extension's functions and constants; those that issue ioctls do nothing while it is switched off.

    Attributes:
        off: Whether they do nothing.
    """

    def __init__(self, real: Any) -> None:
        self._real = real
        self.off = False
        for name in dir(real):
            short = name.removeprefix("pyiommufd_")
            if name != short and not short.startswith(_HARMLESS):
                # A KeyError here is a function that is new: it needs an entry above.
                setattr(self, name, self._switch(getattr(real, name), _NOOPS[short]))

    def _switch(self, real: Any, noop: Any) -> Any:
        return lambda *arguments: (noop if self.off else real)(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __dir__(self) -> list[str]:
        return dir(self._real)


def install() -> Library:
    """Take the place of the extension, before anything has imported it."""
    if _MODULE in sys.modules:
        raise RuntimeError(f"{_MODULE} is imported already: whoever did has the real one")
    package, _, name = _MODULE.rpartition(".")
    root = importlib.util.find_spec(package)
    assert root is not None
    assert root.submodule_search_locations is not None
    spec = importlib.machinery.PathFinder.find_spec(_MODULE, root.submodule_search_locations)
    assert spec is not None, f"{name} has not been built"
    assert spec.loader is not None
    real = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(real)
    module = ModuleType(_MODULE)
    library = Library(real.lib)
    vars(module).update(ffi=real.ffi, lib=library, __file__=str(Path(real.__file__ or "")))
    sys.modules[_MODULE] = module
    return library


class Switch:
    """The pytest plugin that switches the ioctls off and on.

    Args:
        library: The library in the extension's place.
        since: ``setup`` or ``call``.
    """

    def __init__(self, library: Library, since: str) -> None:
        self._library = library
        self._since = since

    def _while_off(self) -> Generator[None, Any, Any]:
        self._library.off = True
        try:
            return (yield)
        finally:
            self._library.off = False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, Any, Any]:
        if self._since == "setup":
            return (yield from self._while_off())
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        return (yield from self._while_off())


def main() -> int:
    """Run pytest so."""
    since, *arguments = sys.argv[1:]
    if since not in ("setup", "call"):
        raise SystemExit(__doc__)
    switch = Switch(install(), since)
    return int(pytest.main(arguments, plugins=[switch]))


if __name__ == "__main__":
    sys.exit(main())
