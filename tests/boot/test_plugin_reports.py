"""`pytest --guest`: its reports are those of a run here."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.boot.plugin_project import Case, Project, outcome

pytestmark = pytest.mark.boots


# Every outcome there is, and everything that a report can carry.
ALL_OUTCOMES = """\
    import logging
    import subprocess
    import sys
    import warnings

    import pytest

    def test_pass(record_property):
        record_property("figure", 42)

    def test_fail():
        print("said", flush=True)
        print("cried", file=sys.stderr)
        subprocess.run(["echo", "by a child"], check=True)
        logging.getLogger("here").warning("logged")
        left, right = {"a": 1}, {"a": 2}
        assert left == right

    class TestClass:
        @pytest.mark.parametrize("number", [1, 2, "ü\\udc80"], ids=["one", "two", "odd"])
        def test_param(self, number):
            assert number != 2

    @pytest.mark.skip(reason="not now")
    def test_skip_mark(): ...

    def test_skip_inside():
        pytest.skip("found out late")

    @pytest.mark.xfail(reason="known")
    def test_xfail():
        raise ValueError("as known")

    @pytest.mark.xfail(reason="no more", strict=True)
    def test_xpass_strict(): ...

    @pytest.fixture
    def broken():
        raise RuntimeError("set up")

    def test_error_in_setup(broken): ...

    @pytest.fixture
    def leaves_badly():
        yield
        raise RuntimeError("torn down")

    def test_error_in_teardown(leaves_badly): ...

    def test_fail_twice(leaves_badly):
        assert 0

    def test_warning_is_an_error():
        warnings.warn("by the ini file", stacklevel=1)

    @pytest.mark.filterwarnings("default")
    def test_warning():
        warnings.warn("only this", DeprecationWarning, stacklevel=1)

    def test_chained():
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("because of it") from error
"""

SUBTESTS = """\
    def test_subtests(subtests):
        for number in range(3):
            with subtests.test(number=number):
                assert number != 1
"""

ONE_PROCESS = """\
    import os
    import warnings

    import own_plugin
    import pytest

    processes = set()
    made = []

    @pytest.fixture(scope="session")
    def session_thing():
        made.append("session")

    @pytest.fixture(scope="module")
    def module_thing(session_thing):
        made.append("module")

    @pytest.mark.parametrize("number", range(4))
    def test_scopes(number, module_thing):
        processes.add(os.getpid())
        assert made == ["session", "module"]
        assert len(processes) == 1

    def test_plugin_option(request):
        assert request.config.getoption("colour") == "green"
        assert own_plugin.seen == [f"test_zz_guest.py::test_scopes[{n}]" for n in range(4)]

    def test_device_of_the_guest():
        assert os.path.exists("/dev/iommu")
        assert os.uname().nodename == "pyiommufd-guest"

    def test_folder_is_writable(tmp_path):
        open("written", "w").close()
        (tmp_path / "too").touch()

    @pytest.mark.filterwarnings("default")
    def test_warning_of_a_class_that_only_the_guest_has():
        from only_there import OnlyThere

        warnings.warn("as the guest has it", OnlyThere, stacklevel=1)
"""

ONLY_THERE = """\
    from pathlib import Path

    Path(__file__).with_name("written").touch()

    class OnlyThere(UserWarning): ...
"""

OWN_PLUGIN = """\
    seen = []

    def pytest_addoption(parser):
        parser.addoption("--colour")

    def pytest_runtest_logreport(report):
        if report.when == "call" and "scopes" in report.nodeid:
            seen.append(report.nodeid)
"""


@dataclass
class Both:
    here: subprocess.CompletedProcess[str]
    guest: subprocess.CompletedProcess[str]
    cases_here: dict[str, Case]
    cases_guest: dict[str, Case]
    folder: Path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The same tests, run here and in a guest; there, with some that would fail here."""
    project = Project(tmp_path_factory.mktemp("both"))
    project.write(
        pytest__ini="[pytest]\nfilterwarnings = error\njunit_family = xunit1\nxfail_strict = true\n",
        own_plugin__py=OWN_PLUGIN,
        test_all__py=ALL_OUTCOMES,
        test_sub__py=SUBTESTS if int(pytest.__version__.split(".")[0]) >= 9 else "",
        test_zz_guest__py=ONE_PROCESS,
        only_there__py=ONLY_THERE,
    )
    options = ["-p", "own_plugin", "--colour=green", "-v", "-rA", "--showlocals"]
    here = project.pytest(*options, "test_all.py", "test_sub.py")
    cases_here = project.cases()
    guest = project.pytest("--guest", *options)
    return Both(here, guest, cases_here, project.cases(), project.folder)


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d+\.\d+s", "…", text)


def test_reports_are_those_of_a_run_here(both: Both) -> None:
    assert both.here.returncode == both.guest.returncode == 1, both.guest.stdout + both.guest.stderr
    assert len(both.cases_here) >= 15
    for name, case in both.cases_here.items():
        assert _without_addresses(repr(both.cases_guest[name])) == _without_addresses(repr(case)), name
    names = [name for name in both.cases_guest if not name.startswith("test_zz_guest.")]
    assert names == list(both.cases_here)


def test_terminal_shows_what_a_run_here_shows(both: Both) -> None:
    def lines(output: str) -> list[str]:
        body = output[output.index(" ERRORS ===") :]
        kept = [line for line in body.splitlines() if line.strip() and not re.search(r"zz_guest|guest has", line)]
        return [re.sub(r"^=+.* in .*|=|-{3,}", "", _without_addresses(line)).strip() for line in kept]

    assert lines(both.guest.stdout) == lines(both.here.stdout)


def test_one_process_runs_all_with_its_plugins(both: Both) -> None:
    cases = {name: outcome(case) for name, case in both.cases_guest.items() if name.startswith("test_zz_guest.")}
    assert len(cases) == 8
    assert set(cases.values()) == {"passed"}, both.guest.stdout


def test_guest_leaves_nothing_in_the_folder(both: Both) -> None:
    """Nor has it a module of its choice run here."""
    assert "UserWarning: as the guest has it" in both.guest.stdout
    assert not (both.folder / "written").exists()


def test_stop_select_and_last_failed(project: Project) -> None:
    project.write(
        test_some__py="""\
        import pytest

        order = []

        @pytest.fixture(scope="module")
        def thing():
            yield
            order.append("down")
            print("module torn down")

        def test_one(thing): ...

        def test_unwanted():
            assert 0, "deselected"

        @pytest.mark.flag
        def test_fails(thing):
            assert 0

        def test_never(thing):
            assert 0, "after the stop"
        """,
        pytest__ini="[pytest]\nmarkers = flag\n",
    )
    stopped = project.pytest("--guest", "-x", "-v", "-k", "not unwanted")
    assert {name: outcome(case) for name, case in project.cases().items()} == {
        "test_some.test_one": "passed",
        "test_some.test_fails": "failure",
    }
    assert stopped.returncode == 1
    assert "stopping after 1 failures" in stopped.stdout
    assert "1 failed, 1 passed, 1 deselected" in stopped.stdout
    # The failure stops the run before the teardown, so that belongs to it, as it does without a guest.
    assert "module torn down" in stopped.stdout
    again = project.pytest("--guest", "--lf", "-m", "flag")
    assert list(project.cases()) == ["test_some.test_fails"]
    assert again.returncode == 1


def test_what_only_the_guest_sees(project: Project) -> None:
    """Files that cannot be collected there, `pytest.exit`, and a fork that comes back."""
    guest = 'os.uname().nodename == "pyiommufd-guest"'
    project.write(
        test_a_broken__py=f"import os\nassert not {guest}, 'no use there'\ndef test_one(): ...\n",
        test_b_skipped__py=f"""\
        import os, pytest
        if {guest}:
            pytest.skip("not for guests", allow_module_level=True)
        def test_one(): ...
        """,
        test_c_param__py=f"""\
        import os, pytest
        @pytest.mark.parametrize("name", ["there"] if {guest} else ["here"])
        def test_one(name): ...
        """,
        test_d_fork__py="""\
        import os, pytest
        def test_child_comes_back():
            child = os.fork()
            if child == 0:
                pytest.fail("in the child")
            os.waitpid(child, 0)
        """,
        test_e_exit__py="""\
        import pytest
        def test_exit():
            pytest.exit("enough", returncode=77)
        def test_never(): ...
        """,
    )
    result = project.pytest("--guest", "-v", "-rs")
    cases = project.cases()
    assert outcome(cases["test_a_broken.test_one"]) == "error"
    assert "no use there" in cases["test_a_broken.test_one"].outcomes[0][2]
    assert outcome(cases["test_b_skipped.test_one"]) == "skipped"
    assert "not for guests" in result.stdout
    assert outcome(cases["test_c_param.test_one[here]"]) == "error"
    assert "not in the guest" in cases["test_c_param.test_one[here]"].outcomes[0][2]
    assert outcome(cases["test_d_fork.test_child_comes_back"]) == "passed"
    assert "test_e_exit.test_never" not in cases
    assert "enough" in result.stdout
    assert result.returncode == 77
