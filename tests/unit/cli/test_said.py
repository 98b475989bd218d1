"""What commands print of ways out: commands and options that exist, and no Python; exceptions print Python."""

from __future__ import annotations

import ast
import errno
import importlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pyiommufd
from pyiommufd import HostDevice
from pyiommufd.diagnose import fixes
from pyiommufd.diagnose.explain import table
from pyiommufd.errors import (
    Cause,
    ClaimError,
    ClaimRefusedError,
    CloseError,
    Fix,
    IoctlError,
    Refusal,
    override,
)
from tests.unit.cli.said import python_in, wrong_commands

PACKAGE = Path(pyiommufd.__file__).parent
CAUSES = [(request, code, row.general) for (request, code), rows in table().items() for row in rows]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every text of a module but its docstrings, an f-string as one, with X for what it fills in."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped.update(map(id, node.values))
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_commands_that_are_named_exist(path: Path) -> None:
    for line, text in texts(path):
        # Threads, pip's names, and what is said of the project.
        if re.search(r"pyiommufd (?:lock|reads|where|into|as|itself|is|needs)\b", text):
            continue
        assert not wrong_commands(text), f"line {line}: {text}"


@pytest.mark.parametrize(
    ("request_name", "code", "cause"), CAUSES, ids=[f"{one} {errno.errorcode[code]}" for one, code, _ in CAUSES]
)
def test_rows_for_a_command_hold_no_python(request_name: str, code: int, cause: Cause) -> None:
    del request_name, code
    printed = cause.for_command()
    assert cause.fix
    assert not python_in(printed), printed
    assert not wrong_commands(printed)


def _fixes_of(module: str) -> Iterator[tuple[int, str]]:
    """What each cause that a module makes says to do, for a command to print; of f-strings, the text alone."""
    names = vars(importlib.import_module(f"pyiommufd.diagnose.{module}"))
    tree = ast.parse((PACKAGE / f"diagnose/{module}.py").read_text())
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Cause"):
            continue
        for part in ast.walk((node.args[3:] or node.args[2:] or [ast.Constant("")])[0]):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield node.lineno, part.value
            elif isinstance(part, ast.Name):
                value = names.get(part.id, "")
                yield node.lineno, value.command if isinstance(value, Fix) else value if isinstance(value, str) else ""


@pytest.mark.parametrize("module", [path.stem for path in sorted((PACKAGE / "diagnose").glob("[a-z]*.py"))])
def test_causes_for_a_command_hold_no_python(module: str) -> None:
    for line, text in _fixes_of(module):
        assert not python_in(text), f"line {line}: {text}"


def test_shared_fixes() -> None:
    shared = [value for value in vars(fixes).values() if isinstance(value, Fix)]
    assert len(shared) > 4
    device = HostDevice("0000:00:03.0", "pci", Path("/"), 1, 2, 3, None, None, None, None, None, False)
    claims = [fixes.claim(replace(device, without_iommu=without), "claim it") for without in (False, True)]
    for fix in (*shared, *claims):
        assert python_in(fix.python), fix
        assert not python_in(fix.command), fix


def test_python_is_told_from_commands() -> None:
    for text in ("plan_claim(['x']).apply()", "release()", "see IOAS.iova_ranges", 'force=["held"]', "token=, then"):
        assert python_in(text), text
    for text in ("pyiommufd claim x", "intel_iommu=on (or off)", "--force held", "iommufd.allow_unsafe_interrupts=1"):
        assert not python_in(text), text
    assert wrong_commands("pyiommufd clam x; pyiommufd claim x --frce y, pyiommufd run x -- z --no") == [
        "clam",
        "claim --frce",
    ]


def test_refused_claim_says_how_to_override() -> None:
    used = Refusal("0000:00:03.0", "mounted", "it holds /home")
    held = Refusal("0000:00:03.0", "held", "process 7 has it")
    error = ClaimRefusedError((used, held, used))
    assert str(error).endswith('\n  to override: force=["mounted", "held"]')
    assert error.for_command().endswith("\n  to override: --force mounted --force held")
    claimed = Refusal("0000:00:03.0", "claimed", "it is claimed", "release(['x']) does", "pyiommufd release x does")
    error = ClaimRefusedError((used, claimed))
    assert "it is claimed; release(['x']) does [claimed]\n  nothing overrides claimed" in str(error)
    assert "it is claimed; pyiommufd release x does [claimed]\n  nothing overrides claimed" in error.for_command()
    assert override([used]).command == "to override: --force mounted"


def test_errors_within_errors() -> None:
    inner = ClaimError("it is in use", Fix("release(['x'])", "pyiommufd release x"))
    outer = ClaimError("the claim failed", inner, Fix("recover()", "pyiommufd recover"))
    assert str(outer) == "the claim failed: it is in use; release(['x']); recover()"
    assert outer.for_command() == "the claim failed: it is in use; pyiommufd release x; pyiommufd recover"
    assert "pyiommufd release x" in CloseError("left:", (inner,)).for_command()
    assert "release(['x'])" in str(CloseError("left:", (inner,)))


def test_causes_of_an_ioctl() -> None:
    error = IoctlError("open", errno.ENOENT, "x", (Cause("s", "e", "plan_claim(['x'])", "pyiommufd claim x"),))
    assert str(error).endswith("s (e); plan_claim(['x'])")
    assert error.for_command().endswith("s (e); pyiommufd claim x")
