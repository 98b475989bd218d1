"""Builds `pyiommufd._uapi`, the cffi extension (API mode, one abi3 module for CPython 3.11 and newer).

setup.py takes `builder` from here. What is compiled says pyiommufd/uapi/cffi_source.py, read as a file: nothing of
pyiommufd is imported, it may not exist yet.

`python build_cffi.py --stub` writes the typed stubs of the extension and of `pyiommufd.uapi` from the same
declarations; run it after a change to a header in pyiommufd/uapi.
"""

from __future__ import annotations

import argparse
import builtins
import importlib.util
import keyword
import re
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent
UAPI = "pyiommufd/uapi"

if TYPE_CHECKING:
    from pyiommufd.uapi import cffi_source
else:
    _spec = importlib.util.spec_from_file_location("cffi_source", ROOT / UAPI / "cffi_source.py")
    cffi_source = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(cffi_source)

STUB = f"{UAPI}/__init__.pyi"
EXTENSION_STUB = "pyiommufd/_uapi.pyi"

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


def constant_names() -> list[str]:
    """Returns the name of every constant that the headers declare, in their order."""
    text = cffi_source.declarations()
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
    functions = "".join(_method(*match.groups()) for match in _PROTOTYPE.finditer(cffi_source.declarations()))
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


builder = cffi_source.make_builder(include=UAPI, depends=["build_cffi.py"])

if __name__ == "__main__":
    main()
