"""Where benchmarks measure: in a guest whose clock counts instructions, beside a program in C."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyiommufd.testing import Guest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def in_guest(module: str, *arguments: str, counted: bool = True, sources: Sequence[str] = (), **options: Any) -> Any:
    """What a module of this folder prints as its last line, as JSON, when it is run in a guest.

    Args:
        module: Its name without the package.
        arguments: Passed to it, after the paths of the compiled programs.
        counted: The guest has one CPU, and a clock that counts instructions (QEMU's -icount, two
            nanoseconds for each): its figures do not depend on what else this machine is doing.
        sources: C files of this folder, compiled for it.
        options: Of the `Guest`.
    """
    if counted:
        options |= {"cpus": 1, "accelerator": "tcg", "qemu_arguments": ["-icount", "shift=1,sleep=off"]}
    with tempfile.TemporaryDirectory() as folder:
        programs = [compiled(source, Path(folder)) for source in sources]
        options["read_only"] = [folder, *options.get("read_only", [])]
        with Guest(folder=ROOT, **options) as guest:
            command = ["python", "-m", f"tests.benchmarks.{module}", *map(str, programs), *arguments]
            # No limit: such a clock jumps to the end of it while the guest waits for the host's disk.
            done = guest.run(command, timeout=None if counted else 1800)
    if done.returncode:
        sys.exit((done.stdout + done.stderr).decode(errors="replace"))
    return json.loads(done.stdout.splitlines()[-1])


def compiled(source: str, folder: Path) -> Path:
    """A C program of this folder, compiled into another."""
    program = folder / Path(source).stem
    include = f"-I{ROOT / 'pyiommufd/uapi'}"
    subprocess.run(["gcc", "-O2", "-Wall", include, str(HERE / source), "-o", str(program)], check=True)
    return program
