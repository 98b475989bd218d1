"""The twins on a library whose ioctls do nothing: every one has to fail, or what it asserts is not the kernel's doing.

    python -m tests.conformance.noop setup|call PYTEST ARGUMENTS

The entry points of the extension that issue ioctls succeed without issuing any, from the set-up of each test on, or
from its call on: then the set-up is real, and it is the body of the test that has to notice. The mock IOMMU's test
command stays.
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
_LIVE = 1


def _made(made: Any, *_: Any) -> int:
    made.state = _LIVE
    return 0


def _gone(record: Any) -> int:
    record.state = 0
    return 0


def _mapped(pieces: Any, count: int, iova: int | None) -> None:
    for at in range(count):
        pieces[at].state = _LIVE
        if iova is not None:
            pieces[at].iova = iova + pieces[at].offset


def _copy(
    ioas: Any, pieces: Any, count: int, flags: int, source: Any, src_iova: int, length: int, iova: int, changes: int
) -> int:
    _mapped(pieces, count, iova)
    return 0


def _map_many(ioas: Any, pieces: Any, count: int, flags: int, memory: Any, done: Any) -> int:
    _mapped(pieces, count, None)
    done[0] = count
    return 0


def _unmap_many(pieces: Any, count: int) -> int:
    for at in range(count):
        _gone(pieces[at])
    return 0


def _unmap_range(ioas: Any, iova: int, length: int, pieces: Any, count: int, changes: int, unmapped: Any) -> int:
    for at in range(count):
        _gone(pieces[at])
    unmapped[0] = length
    return 0


def _bind(cdev: Any, device: Any, owner: Any, token: Any) -> int:
    owner.fd, cdev.fd = cdev.fd, -1
    return _made(device)


def _attach(cdev: Any, table: Any, pasid: int, group_on: Any, attached: Any) -> int:
    group_on[0], attached[0] = table.id, 1
    return 0


def _detach(cdev: Any, pasid: int, attached: Any) -> int:
    attached[0] = 0
    return 0


def _ioeventfd(cdev: Any, offset: int, width: int, value: int, eventfd: Any, on: Any) -> int:
    on[0] = int(bool(eventfd))
    return 0


# What the C code does where the call succeeds and leaves the memory of its command as it was.
_NOOPS = {
    "ioctl": lambda file, request, argument: 0,
    "raw_ioctl": lambda fd, request, argument: 0,
    "object_ioctl": lambda made, request, command, id_at: 0,
    "make": _made,
    "destroy": _gone,
    "abandon": _gone,
    "ioas_copy": _copy,
    "ioas_map_many": _map_many,
    "ioas_unmap_many": _unmap_many,
    "ioas_unmap_range": _unmap_range,
    "ioas_unmap_left": lambda ioas, piece: _gone(piece),
    "ioas_first_hole": lambda ioas, iova, length, hole: 0,
    "try_page_table": lambda device, ioas, iova, length, dst_iova: 0,
    "bind": _bind,
    "attach": _attach,
    "detach": _detach,
    "ioeventfd": _ioeventfd,
    "set_irqs": lambda cdev, command, eventfds, count: 0,
    "feature": lambda cdev, command, fd_at, given, made: 0,
    "gfx_dma_buf": lambda cdev, number, made: 0,
}
# What issues no ioctl.
_HARMLESS = ("file_", "window_", "injection_", "any_mapped", "mapped_within", "runs")
# IOMMU_TEST_CMD. Written down again: what has it has the extension.
_TEST_COMMAND = 0x3BA0


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
        return lambda *arguments: (noop if self.off and _TEST_COMMAND not in arguments[1:2] else real)(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __dir__(self) -> list[str]:
        return dir(self._real)


def _switch_methods(library: Library) -> None:
    """Have what is written by hand map and unmap nothing while the library is off: `pyiommufd.uapi.fast`."""
    from pyiommufd import DMAMapping
    from pyiommufd._uapi import ffi
    from pyiommufd.uapi import fast

    real_map, real_map_file, real_unmap = fast.Mapper.map, fast.Mapper.map_file, fast.Mapping._unmap

    def recorded(mapper: Any, memory: object, length: int, iova: int | None) -> Any:
        made: Any = DMAMapping(mapper)
        piece = ffi.cast("struct pyiommufd_piece *", made._address)
        piece.length = length
        _mapped(piece, 1, iova)
        made._ioas._table[made] = memory
        return made

    def map_nothing(mapper: Any, buffer: Any, iova: int | None, flags: int) -> Any:
        if not library.off:
            return real_map(mapper, buffer, iova, flags)
        held = buffer if isinstance(buffer, fast.Held) else fast.Held(buffer, False)
        return recorded(mapper, held, len(held), iova)

    def map_no_file(mapper: Any, memory: object, file: int, start: int, length: int, iova: Any, flags: int) -> Any:
        if not library.off:
            return real_map_file(mapper, memory, file, start, length, iova, flags)
        return recorded(mapper, memory, length, iova)

    def unmap_nothing(mapping: Any) -> int:
        if not library.off:
            return real_unmap(mapping)
        _gone(ffi.cast("struct pyiommufd_piece *", mapping._address))
        mapping._ioas._table.pop(mapping, None)
        return 0

    for kind, name, method in (
        (fast.Mapper, "map", map_nothing),
        (fast.Mapper, "map_file", map_no_file),
        (fast.Mapping, "_unmap", unmap_nothing),
    ):
        setattr(kind, name, method)


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

    def pytest_sessionstart(self) -> None:
        _switch_methods(self._library)

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
