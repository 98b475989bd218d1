"""Builds `pyiommufd._uapi`, the cffi extension (API mode, one abi3 module for CPython 3.11 and newer).

setup.py takes `builder` from here. Nothing of pyiommufd is imported: it may not exist yet.

`python build_cffi.py --stub` writes the typed stubs of the extension and of `pyiommufd.uapi` from the same
declarations; run it after a change to a header in pyiommufd/uapi.
"""

from __future__ import annotations

import argparse
import builtins
import keyword
import re
import sysconfig
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent
UAPI = "pyiommufd/uapi"
HEADERS = ("iommufd.h", "vfio.h", "entry.h", "window.h")
SOURCES = ("file.c", "object.c", "mapping.c", "device.c", "window.c")

STUB = f"{UAPI}/__init__.pyi"
EXTENSION_STUB = "pyiommufd/_uapi.pyi"

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_DEFINE = re.compile(r"#[ \t]*define[ \t]+(\w+)(\(?)(.*)")
_CONSTANT = re.compile(r"#define (\w+) \.\.\.")
_ENUM = re.compile(r"\benum\b\s*\w*\s*\{([^}]*)\}")
_PROTOTYPE = re.compile(r"^([A-Za-z_][\w \t*]*?)(\w+)\(([^()]*)\);", re.MULTILINE)
_PARAMETER = re.compile(r"(.*?)(\w+)", re.DOTALL)
_INTEGER = re.compile(
    r"(un)?signed( char)?|((un)?signed )?(short|int|long|long long)|u?int\d+_t|s?size_t|u?intptr_t|off_t"
)

_NOTE = "# Written by `python build_cffi.py --stub` from the headers in pyiommufd/uapi: change those.\n"
_FFI_STUB = """\
from typing import Any, Final, final, type_check_only

from _cffi_backend import FFI

# Which fields a struct has, only C knows: Any.
@type_check_only
class _FFI(FFI):
    def new(self, cdecl: str | FFI.CType, init: Any = ...) -> Any: ...
    def cast(self, cdecl: str | FFI.CType, value: Any) -> Any: ...

# Its constants are in pyiommufd.uapi.
@final
@type_check_only
class _Lib:
"""


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
    return "".join(cdef_of((ROOT / UAPI / header).read_text()) for header in HEADERS)


def make_builder() -> FFI:
    """Returns the cffi builder of `pyiommufd._uapi`."""
    ffi = FFI()
    ffi.cdef(declarations())
    # cffi turns the limited API off itself where there is none (free-threaded builds); the version here is
    # the oldest CPython that one built extension serves.
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    ffi.set_source(
        "pyiommufd._uapi",
        "".join(f'#include "{name}"\n' for name in HEADERS + SOURCES),
        depends=["build_cffi.py", *(f"{UAPI}/{name}" for name in HEADERS + SOURCES)],
        include_dirs=[UAPI],
        define_macros=[] if free_threaded else [("Py_LIMITED_API", "0x030b0000")],
    )
    return ffi


def constant_names() -> list[str]:
    """Returns the name of every constant that the headers declare, in their order."""
    text = declarations()
    found = [(match.start(), match[1]) for match in _CONSTANT.finditer(text)]
    for enum in _ENUM.finditer(text):
        enumerators = (part.partition("=")[0].strip() for part in enum[1].split(","))
        found += [(enum.start(), name) for name in enumerators if name]
    return [name for _, name in sorted(found, key=lambda item: item[0])]


def _python_type(c_type: str, *, result: bool = False) -> str:
    """Returns what cffi takes as a C parameter of this type, or gives as a result of it."""
    words = " ".join(c_type.replace("*", " * ").split())
    if words.endswith("*"):
        return "Any"  # ioctls.py gives cdata types of its own: File, Object, Piece
    if words == "void" and result:
        return "None"
    if words in ("bool", "_Bool"):
        return "bool"
    if _INTEGER.fullmatch(words):
        return "int"
    raise ValueError(f"no Python type is known for the C type {words!r}: add it to _python_type in build_cffi.py")


def _method(result: str, name: str, parameters: str) -> str:
    """Returns the stub of a C function as a method of the library, laid out as ruff does."""
    arguments = ["self"]
    for parameter in parameters.split(","):
        if parameter.strip() in ("", "void"):
            continue
        match = _PARAMETER.fullmatch(parameter.strip())
        if match is None or not match[1].strip():
            raise ValueError(f"{name}(): the parameter {parameter.strip()!r} has no name, or none this can read")
        taken = keyword.iskeyword(match[2]) or hasattr(builtins, match[2])
        arguments.append(f"{match[2]}{'_' if taken else ''}: {_python_type(match[1])}")
    arguments.append("/")
    end = f") -> {_python_type(result, result=True)}: ...\n"
    line = f"    def {name}({', '.join(arguments)}{end}"
    if len(line) <= 120 + 1:
        return line
    return f"    def {name}(\n" + "".join(f"        {each},\n" for each in arguments) + f"    {end}"


def stubs() -> dict[Path, str]:
    """Returns the text of each typed stub under the path of its file."""
    functions = "".join(_method(*match.groups()) for match in _PROTOTYPE.finditer(declarations()))
    variables = "".join(f"{name}: Final[int]\n" for name in constant_names())
    library = f"{_FFI_STUB}{functions}\nffi: Final[_FFI]\nlib: Final[_Lib]\n"
    return {
        ROOT / EXTENSION_STUB: f"{_NOTE}\n{library}",
        ROOT / STUB: f"{_NOTE}\nfrom typing import Final\n\n{variables}",
    }


def main() -> None:
    """Writes the stubs."""
    parser = argparse.ArgumentParser(description="To build the extension: pip install -e .")
    parser.add_argument("--stub", action="store_true", required=True, help="write the typed stubs")
    parser.parse_args()
    for path, text in stubs().items():
        path.write_text(text)


builder = make_builder()

if __name__ == "__main__":
    main()
