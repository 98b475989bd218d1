"""README's programs, run as it says: each a program of its own, that claims and gives back by itself."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pyiommufd import HostDevice

BLOCKS = re.findall(r"^```python\n(.*?)^```", Path("README.md").read_text(), re.MULTILINE | re.DOTALL)
FIRST, WITHIN, MOCK = BLOCKS[:3]
PROGRAMS = {
    "first": FIRST,
    # Within the innermost block but one of the first: its window is closed.
    "beyond": FIRST + textwrap.indent(WITHIN, 8 * " "),
    "mock": f"from pyiommufd import DMABuffer\n{MOCK}",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_do_as_they_say(name: str, tmp_path: Path, first: HostDevice) -> None:
    if first.refreshed().on_vfio:
        pytest.skip("a test before has claimed the group")
    program = tmp_path / f"{name}.py"
    program.write_text(PROGRAMS[name])
    done = subprocess.run([sys.executable, "-W", "error", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    if name == "beyond":
        assert done.stdout.endswith("True\n")
    if name == "mock":
        assert done.stdout.count("\n") == 2  # ranges of dirty pages
