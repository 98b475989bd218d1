"""The builder, the stubs it writes and the extension it made."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pyiommufd._uapi
from pyiommufd._uapi import ffi, lib
from pyiommufd.uapi.cffi_source import cdef_of

ROOT = Path(__file__).resolve().parents[2]
STUBS = ("pyiommufd/_uapi.pyi", "pyiommufd/uapi/__init__.pyi")


@pytest.fixture(scope="module")
def build_cffi() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_cffi", ROOT / "build_cffi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("stub", STUBS)
def test_stub_is_fresh(build_cffi: ModuleType, stub: str) -> None:
    text = build_cffi.stubs()[ROOT / stub]
    assert (ROOT / stub).read_text() == text, f"{stub} is stale: run `python build_cffi.py --stub`"


def test_stub_names_what_the_extension_has() -> None:
    extension, package = (ast.parse((ROOT / path).read_text()) for path in STUBS)
    (library,) = (node for node in extension.body if isinstance(node, ast.ClassDef) and node.name == "_Lib")
    constants = {
        node.target.id for node in package.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    functions = {
        node.name: len(node.args.posonlyargs) - 1 for node in library.body if isinstance(node, ast.FunctionDef)
    }
    compiled = {name: getattr(lib, name) for name in dir(lib)}

    assert constants == {name for name, value in compiled.items() if isinstance(value, int)}
    assert functions == {
        name: len(ffi.typeof(value).args) for name, value in compiled.items() if not isinstance(value, int)
    }


def test_extension_is_newer_than_its_sources() -> None:
    # An editable install does not rebuild by itself; without this, tests would pass on yesterday's C.
    built = Path(str(pyiommufd._uapi.__file__))
    if ROOT not in built.parents:
        pytest.skip("the installed extension is not this folder's")
    folder = ROOT / "pyiommufd/uapi"
    sources = [*folder.glob("*.[ch]"), folder / "cffi_source.py", ROOT / "build_cffi.py"]
    newer = [source.name for source in sources if source.stat().st_mtime > built.stat().st_mtime]
    assert not newer, f"{', '.join(newer)} changed since the build: run `pip install -e .`"


@pytest.mark.skipif("t" in getattr(sys, "abiflags", ""), reason="free-threaded CPython before 3.15 has no abi3")
def test_extension_is_abi3() -> None:
    assert Path(str(pyiommufd._uapi.__file__)).name == "_uapi.abi3.so"


def test_constants_import_loads_nothing_else() -> None:
    code = (
        "import sys, pyiommufd._uapi, pyiommufd; before = set(sys.modules); import pyiommufd.uapi;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"pyiommufd.uapi"}


def test_builder_is_importable_without_the_package() -> None:
    code = "import sys; sys.path.insert(0, '.'); import build_cffi; print('pyiommufd' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_defines_become_questions_to_the_compiler() -> None:
    guard = "#ifndef G /* a guard */\n#define G\n#include <x.h>\n"
    header = guard + "#define A (1U << 31) /* two\n lines */\nint f(void);\n#endif\n"
    assert cdef_of(header) == "#define A ...\nint f(void);\n"


@pytest.mark.parametrize(
    ("header", "message"),
    [("#define F(x) (x)\n", "macro F takes arguments"), ("#define A \\\n 1\n", "continues on the next line")],
)
def test_what_cffi_cannot_take_is_refused(header: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cdef_of(header)


@pytest.mark.parametrize("header", ["iommufd", "vfio"])
def test_the_kernels_header_after_ours_adds_nothing_and_before_it_is_refused(tmp_path: Path, header: str) -> None:
    # A stand-in with the include guard of the installed header: the system's may be missing or old.
    guard = {"iommufd": "_IOMMUFD_H", "vfio": "VFIO_H"}[header]
    kernel = tmp_path / "linux" / f"{header}.h"
    kernel.parent.mkdir()
    kernel.write_text(f"#ifndef {guard}\n#define {guard}\nclash;\n#endif\n")
    includes = [f'#include "{ROOT}/pyiommufd/uapi/{header}.h"\n', f'#include "{kernel}"\n']

    def compiles(text: str) -> subprocess.CompletedProcess[str]:
        command = ["cc", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-x", "c", "-"]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    assert compiles("".join(includes)).stderr == ""
    assert "in place of" in compiles("".join(reversed(includes))).stderr
