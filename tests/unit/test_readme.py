"""README's Python, and the examples, as type checkers see them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.type_checkers import CHECKERS, check

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("checker", CHECKERS)
def test_python_as_it_stands(checker: str, tmp_path: Path) -> None:
    """The first block of README alone; each of the others goes on from those before it."""
    programs = sorted((ROOT / "examples").glob("*.py"))
    for number in range(len(BLOCKS)):
        programs.append(tmp_path / f"readme{number}.py")
        programs[-1].write_text("\n".join(BLOCKS[: number + 1]))
    # One that is wrong: what passes has been checked with the types of the package.
    wrong = tmp_path / "wrong.py"
    wrong.write_text('from pyiommufd import find_device\n\nprint(find_device("02:01.0").group.viable)\n')
    done = check(checker, *programs, wrong, folder=tmp_path)
    errors = [line for line in done.stdout.splitlines() if " error: " in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert "wrong.py:3" in errors[0]
    assert "viable" in errors[0]
