"""`pytest --guest --cov`: what tests cover in guests counts as it does here."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.boot.plugin_project import Project

pytestmark = pytest.mark.boots

COVERED = """\
    import os

    def size(number):
        if number > 1:
            return "many"
        return "one"

    def where():
        if os.path.exists("/.guest"):
            return "guest"
        return "here"

    def child():
        return 1

    def lost():
        return 2

    def never():
        return 3
"""

TESTS = """\
    import subprocess, sys
    import covered

    def test_panic():
        covered.lost()
        open("/proc/sysrq-trigger", "w").write("c")

    def test_size():
        assert covered.size(2) == "many"

    def test_where():
        assert covered.where()

    def test_child():
        subprocess.run([sys.executable, "-c", "import covered; covered.child()"], check=True)
"""


HERE = 1 + COVERED.splitlines().index('        return "here"')
"""The line that no guest reaches."""


def run(
    project: Project, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, set[int]], set[str], dict[str, set[str]]]:
    """Run pytest: what it said, the covered lines of each function, the branches not taken, and the tests by line."""
    options = ["-q", "--cov=covered", "--cov-context=test", "--cov-report=term", "--cov-report=json"]
    options.append("--cov-fail-under=99")
    done = project.pytest(*options, *arguments)
    (found,) = json.loads((project.folder / "coverage.json").read_text())["files"].values()
    lines = {name: set(each["executed_lines"]) for name, each in found["functions"].items()}
    contexts = {line: {test for test in tests if "test_it.py::" in test} for line, tests in found["contexts"].items()}
    return done, lines, {str(branch) for branch in found["missing_branches"]}, contexts


def test_coverage_is_that_of_a_run_here(project: Project) -> None:
    """By two workers, in three guests: the one that dies takes what was covered in it with it, and no more."""
    project.write(
        covered__py=COVERED,
        test_it__py=TESTS,
        test_one__py="import covered\ndef test_one():\n    assert covered.size(1) == 'one'\n",
        setup__cfg="[coverage:run]\nbranch = True\npatch = subprocess\n[coverage:json]\nshow_contexts = True\n",
    )
    _, lines_here, branches_here, contexts_here = run(project, "-k", "not panic")
    assert lines_here["child"]
    assert not lines_here["never"]

    project.pytest("--cov=covered", "--cov-report=", "test_one.py")  # which the next one adds to
    guest, lines, branches, contexts = run(
        project, "--guest", "-n", "2", "--dist=loadfile", "--cov-append", "test_it.py"
    )
    assert "1 failed, 3 passed" in guest.stdout, guest.stdout + guest.stderr
    assert "the guest ended early: the coverage of 1 test is lost" in guest.stdout
    assert "FAIL Required test coverage of 99" in guest.stdout
    assert "No data was collected" not in guest.stdout + guest.stderr
    # One line differs: that which says where it ran.
    assert lines_here.pop("where") - lines.pop("where") == {HERE}
    assert lines == lines_here
    assert len(branches) == len(branches_here)
    assert contexts_here.pop(str(HERE)) == {"test_it.py::test_where|run"}
    assert {line: contexts[line] for line in contexts_here} == contexts_here
    assert sorted(path.name for path in project.folder.glob(".coverage*")) == [".coverage"]
