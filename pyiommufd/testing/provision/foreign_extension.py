"""The extension `pyiommufd._uapi` for a guest of another architecture, compiled here, once, into the cache.

Its C source is part of the package, and cffi makes of it what is compiled; the limited API makes one extension serve
whichever CPython the guest's root has.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from pyiommufd.testing.errors import GuestError, GuestMissingError
from pyiommufd.testing.provision.architecture import Architecture
from pyiommufd.testing.provision.entry import FORMAT, Entry, entry_name
from pyiommufd.testing.provision.foreign_root import ForeignRoot
from pyiommufd.testing.provision.kernel_build import missing_compiler
from pyiommufd.testing.provision.kernels import cache_folder
from pyiommufd.testing.provision.locked import locked
from pyiommufd.testing.provision.progress import Progress

NAME = "_uapi.abi3.so"
"""What the extension is called, as a module of `pyiommufd`."""

_FLAGS = ("-O2", "-fPIC", "-shared", "-Wl,-s")


def find_extension(
    architecture: Architecture, root: ForeignRoot, *, cache: Path | None = None, progress: Progress | None = None
) -> Path:
    """The extension for an architecture: from the cache, or compiled.

    Safe for several processes at once: the later ones wait.

    Args:
        architecture: The guest's.
        root: Of that architecture: what it is compiled and linked against.
        cache: The `cache_folder`.
        progress: What is told if another process is at it.

    Raises:
        GuestMissingError: This machine lacks the cross compiler, or cffi with its parser of C.
        GuestError: The compiler refuses it; with what it says.
    """
    cache = cache_folder() if cache is None else cache
    progress = Progress(sys.stderr, "pyiommufd guest: ") if progress is None else progress
    if missing := missing_compiler(architecture):
        raise GuestMissingError(
            f"the extension for an {architecture.name} guest needs what is not installed: "
            f"apt-get install {' '.join(missing)}"
        )
    compiler = f"{architecture.cross_compile}gcc"
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as place:
        source, headers, made_from = _generate(Path(place))
        folder = cache / "extensions" / entry_name("uapi", architecture, said, root.folder.name, *made_from)
        if Entry.load(folder):
            return folder / NAME
        with locked(cache / "extensions" / ".lock", progress, f"the extension for {architecture.name}"):
            if Entry.load(folder) is None:
                with Entry.made(folder, {"compiler": said.partition("\n")[0]}) as work:
                    where = [f"--sysroot={root.root}", f"-I{root.headers}", f"-I{headers}"]
                    command = [compiler, *_FLAGS, *where, str(source), "-o", str(work / NAME)]
                    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
                    if done.returncode != 0:
                        raise GuestError(f"the extension for {architecture.name} does not compile:\n{done.stderr}")
    return folder / NAME


def _generate(place: Path) -> tuple[Path, Path, list[str]]:
    """The C source, in a folder; the folder of what it includes; and all that tells it from another's."""
    try:
        # Only here: it brings a parser of C, which nothing else takes, and which Debian's package does not depend on.
        from cffi.recompiler import make_c_source

        from pyiommufd.uapi import cffi_source
    except ImportError as error:
        raise GuestMissingError(
            f"the extension for a guest of another architecture needs cffi with its parser of C ({error}): "
            "apt-get install python3-cffi, or pip install cffi"
        ) from error
    folder, source = cffi_source.FOLDER, place / "_uapi.c"
    # What emit_c_code() does, but it prints as well, and standard output is not this function's to redirect.
    make_c_source(cffi_source.make_builder(), cffi_source.NAME, cffi_source.PREAMBLE, str(source))
    included = [(folder / name).read_text() for name in cffi_source.HEADERS + cffi_source.SOURCES]
    source.write_text("#define {} {}\n".format(*cffi_source.LIMITED_API) + source.read_text())
    return source, folder, [str(FORMAT), *_FLAGS, source.read_text(), *included]
