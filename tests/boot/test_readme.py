"""README's programs, in a guest as it says: each claims and gives back by itself."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from tests.boot.test_guest_command import guest

pytestmark = pytest.mark.boots

README = Path(__file__).parents[2] / "README.md"
FIRST, WITHIN, MOCK = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)[:3]
PROGRAMS = {
    "first": FIRST,
    # Within the innermost block but one of the first: its window is closed.
    "beyond": FIRST + textwrap.indent(WITHIN, 8 * " "),
    "mock": f"from pyiommufd import DMABuffer\n{MOCK}",
}


def test_programs_do_as_they_say(tmp_path: Path) -> None:
    for name, program in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(program)
    steps = " && ".join(f"echo {name}: && python -W error {name}.py" for name in PROGRAMS)
    done = guest("--", "sh", "-c", steps, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    _, first, beyond, mock = re.split(r"^(?:first|beyond|mock):\n", done.stdout, flags=re.MULTILINE)
    assert first.startswith("<Group 5: 4 devices, not viable")
    assert beyond.endswith("True\n")
    assert mock.count("\n") == 2  # ranges of dirty pages
