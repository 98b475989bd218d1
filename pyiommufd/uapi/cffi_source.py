"""What the extension `pyiommufd._uapi` is compiled from: the headers and sources of this folder, by cffi.

`build_cffi.py` reads this file before there is a package; `pyiommufd.testing.provision.foreign_extension` imports it,
to compile the same for a guest of another architecture. So it imports nothing of pyiommufd.
"""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from cffi import FFI

FOLDER = Path(__file__).resolve().parent
HEADERS = ("iommufd.h", "vfio.h", "entry.h", "window.h")
SOURCES = (
    *("injection.c", "file.c", "object.c", "mapping.c", "bitmap.c", "device.c", "window.c"),
    *("plain_int.c", "mapping_type.c", "window_type.c", "fast.c"),
)

NAME = "pyiommufd._uapi"
"""The extension."""
PREAMBLE = "".join(f'#include "{name}"\n' for name in HEADERS + SOURCES)
"""The C that it consists of, besides what cffi generates."""

LIMITED_API = ("Py_LIMITED_API", "0x030b0000")
"""The C macro, and the oldest CPython that one built extension serves."""

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DEFINE = re.compile(r"#[ \t]*define[ \t]+(\w+)(\(?)(.*)")


def cdef_of(text: str) -> str:
    """Turns a header into what `FFI.cdef` reads.

    Comments and directives go; `#define NAME expression` becomes `#define NAME ...`, whose value the C
    compiler supplies, and a define without an expression (an include guard) goes too.

    Args:
        text: A header of pyiommufd/uapi.

    Returns:
        Its declarations in cffi's subset of C.

    Raises:
        ValueError: The header has what cffi cannot take: a macro with arguments or a continued line.
    """
    lines = []
    for line in _COMMENT.sub(" ", text).splitlines():
        if not line.lstrip().startswith("#"):
            lines.append(line)
            continue
        if line.endswith("\\"):
            raise ValueError(f"{line!r} continues on the next line: write the directive on one line")
        define = _DEFINE.match(line.lstrip())
        if define is None:
            continue
        name, parenthesis, expression = define.groups()
        if parenthesis:
            raise ValueError(f"the macro {name} takes arguments: cffi has no such thing, write a function")
        if expression.strip():
            lines.append(f"#define {name} ...")
    return "\n".join(line for line in lines if line.strip()) + "\n"


def declarations() -> str:
    """Returns the declarations of all headers, in cffi's subset of C."""
    return "".join(cdef_of((FOLDER / header).read_text()) for header in HEADERS)


def make_builder(include: str = str(FOLDER), depends: Sequence[str] = ()) -> FFI:
    """Returns the cffi builder of `pyiommufd._uapi`.

    Args:
        include: The folder of the headers and sources, as the compiler is to be told it.
        depends: What else the extension is to be built anew for.
    """
    ffi = FFI()
    ffi.cdef(declarations())
    # cffi turns the limited API off itself where there is none (free-threaded builds).
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    ffi.set_source(
        NAME,
        PREAMBLE,
        depends=[*depends, f"{include}/{Path(__file__).name}", *(f"{include}/{name}" for name in HEADERS + SOURCES)],
        include_dirs=[include],
        define_macros=[] if free_threaded else [LIMITED_API],
    )
    return ffi
