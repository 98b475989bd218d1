"""Which tests of an earlier revision a soak no longer has.

    python -m tests.runner.ids REVISION

Both are collected on this machine: the revision in a work tree of its own, which uses the extension that is built here.
Prints how many tests each has, and those of the revision that are missing; ends with 1 where there are any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import sweeps
from tests.runner.runs import ROOT

# As each is run: together their conftests would be in each other's way.
_FOLDERS = ("unit", "abi", "boot", "conformance/iommufd", "conformance/vfio", "guest")


def collect(root: Path) -> list[str]:
    """The ids of all tests in a work tree, every point of every sweep among them."""
    # A folder of tests that a revision does not have yet has none.
    environment = {name: value for name, value in os.environ.items() if name != sweeps.SAMPLE}
    found: list[str] = []
    for folder in (f"tests/{name}" for name in _FOLDERS if (root / "tests" / name).is_dir()):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", folder]
        done = subprocess.run(
            command, cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{folder} of {root} cannot be collected:\n{done.stdout}{done.stderr}")
        found += [line for line in done.stdout.splitlines() if line.startswith(folder)]
    return found


def main() -> int:
    """Compare; 1 where a test is missing."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    revision = sys.argv[1]
    now = collect(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree), revision], cwd=ROOT, check=True)
        try:
            for extension in (ROOT / "pyiommufd").glob("_uapi*.so"):
                shutil.copy2(extension, tree / "pyiommufd")
            then = collect(tree)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    missing = sorted(set(then) - set(now))
    print(f"{revision}: {len(then)} tests; here: {len(now)}, of which {len(set(now) - set(then))} are new")
    print("".join(f"missing: {name}\n" for name in missing) + f"{len(missing)} missing")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
