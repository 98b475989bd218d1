"""`pytest --guest`: the reports are those of a run here, and what ends a guest is a failure of the test that did it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.boot.plugin_project import Case, Project, outcome

pytestmark = pytest.mark.boots

IN_GUEST = """\
    import os

    def test_where():
        assert os.uname().nodename == "pyiommufd-guest"
"""

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
"""

OWN_PLUGIN = """\
    seen = []

    def pytest_addoption(parser):
        parser.addoption("--colour")

    def pytest_runtest_logreport(report):
        if report.when == "call" and "scopes" in report.nodeid:
            seen.append(report.nodeid)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "pytest.ini").touch()
    return Project(tmp_path)


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
        kept = [line for line in body.splitlines() if "zz_guest" not in line]
        return [re.sub(r"^=+.* in .*|=|-{3,}", "", _without_addresses(line)).strip() for line in kept]

    assert lines(both.guest.stdout) == lines(both.here.stdout)


def test_one_process_runs_all_with_its_plugins(both: Both) -> None:
    cases = {name: outcome(case) for name, case in both.cases_guest.items() if name.startswith("test_zz_guest.")}
    assert len(cases) == 7
    assert set(cases.values()) == {"passed"}, both.guest.stdout


def test_guest_leaves_nothing_in_the_folder(both: Both) -> None:
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


def test_what_ends_the_guest_fails_its_test_alone(project: Project) -> None:
    project.write(
        test_end__py="""\
        import os, pathlib, signal, time

        def boot():
            return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()

        def test_before(record_property):
            record_property("boot", boot())

        def test_panic():
            pathlib.Path("/proc/sysrq-trigger").write_text("c")

        def test_after_panic(record_property):
            record_property("boot", boot())

        def test_killed():
            os.kill(os.getpid(), signal.SIGKILL)

        def test_after_killed(record_property):
            record_property("boot", boot())

        def test_hangs():
            time.sleep(100_000)

        def test_after_hang(record_property):
            record_property("boot", boot())
        """
    )
    result = project.pytest("--guest", "--guest-timeout=15", "-v")
    cases = project.cases()
    assert {name.removeprefix("test_end."): outcome(case) for name, case in cases.items()} == {
        "test_before": "passed",
        "test_panic": "failure",
        "test_after_panic": "passed",
        "test_killed": "failure",
        "test_after_killed": "passed",
        "test_hangs": "failure",
        "test_after_hang": "passed",
    }, result.stdout
    assert result.returncode == 1
    reasons = {name: case.outcomes[0][1] for name, case in cases.items() if case.outcomes}
    assert "Kernel panic - not syncing: sysrq triggered crash" in reasons["test_end.test_panic"]
    assert "signal 9" in reasons["test_end.test_killed"]
    assert "15 s of --guest-timeout" in reasons["test_end.test_hangs"]
    assert re.search(r"Guest console -+\n(.*\n)*?.*sysrq_handle_crash", result.stdout)
    assert re.search(r"Guest stderr -+\n(.*\n)*?.*test_end\.py\", line \d+ in test_hangs", result.stdout)
    boots = [case.properties["boot"] for case in cases.values() if case.properties]
    assert len(set(boots)) == 4


def test_configurations_have_a_guest_each(project: Project) -> None:
    project.write(
        test_kinds__py="""\
        import pathlib

        import pytest

        from pyiommufd.testing import Edu

        groups = pathlib.Path("/sys/kernel/iommu_groups")
        edus = lambda: [d for d in pathlib.Path("/sys/bus/pci/devices").iterdir()
                        if (d / "device").read_text() == "0x11e8\\n"]

        @pytest.fixture(autouse=True)
        def boot(record_property):
            record_property("boot", pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())

        @pytest.mark.guest(iommu="none", devices=[])
        def test_bare():
            assert not list(groups.iterdir())
            assert not edus()

        @pytest.mark.guest(devices=[Edu(), "edu"])
        def test_two():
            assert list(groups.iterdir())
            assert len(edus()) == 2

        @pytest.mark.guest(devices=[], iommu="none")
        def test_bare_again():
            assert not edus()

        @pytest.mark.guest(devices=(Edu(), "edu"), iommu="intel")
        def test_two_again():
            assert len(edus()) == 2
        """
    )
    result = project.pytest("--guest", "-v")
    assert result.returncode == 0, result.stdout + result.stderr
    boots = {name: case.properties["boot"] for name, case in project.cases().items()}
    assert list(boots) == [f"test_kinds.test_{name}" for name in ("bare", "bare_again", "two", "two_again")]
    first, first_again, second, second_again = boots.values()
    assert first == first_again != second == second_again


def test_marker_without_a_guest(project: Project) -> None:
    project.write(
        test_marked__py="""\
        import pytest

        def test_plain(): ...

        @pytest.mark.guest
        def test_any(): ...

        @pytest.mark.guest(iommu="intel")
        def test_fits(): ...

        @pytest.mark.guest(iommu="amd", memory=512)
        def test_other(): ...
        """
    )
    if not Path("/dev/iommu").exists():
        result = project.pytest("-rs", "--strict-markers")
        assert result.returncode == 0
        assert [outcome(case) for case in project.cases().values()] == ["passed", "skipped", "skipped", "skipped"]
        assert "no /dev/iommu: pytest --guest" in result.stdout
    inner = [project.python, "-m", "pytest", "-rs", "-v", "-p", "no:cacheprovider"]
    launcher = [project.python, "-m", "pyiommufd.cli", "guest", "--", *inner]
    there = subprocess.run(
        launcher, cwd=project.folder, env=project.environ(), capture_output=True, text=True, check=False
    )
    assert "3 passed, 1 skipped" in there.stdout, there.stdout + there.stderr
    assert "the IOMMU is intel, not amd; memory is 1024, not 512" in there.stdout


@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        (["--guest", "--pdb"], "", "--guest-shell"),
        (["--guest-shell"], "", "with --guest only"),
        (["--guest", "--guest-timeout=0"], "", "--guest-timeout"),
        (["--guest", "--guest-iommu=arm"], "", "intel-first-stage"),
        (["--guest"], "@pytest.mark.guest(iomu='intel')", "test_wrong.py::test_it: guest(iomu=…): there is only iommu"),
        (["--guest"], "@pytest.mark.guest('intel')", "keyword arguments only"),
        (["--guest"], "@pytest.mark.guest(devices='edu')", "a list is wanted"),
    ],
)
def test_wrong_usage(project: Project, arguments: list[str], text: str, said: str) -> None:
    (project.folder / "test_wrong.py").write_text(f"import pytest\n{text}\ndef test_it(): ...\n")
    result = project.pytest(*arguments)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR, result.stdout
    assert said in result.stderr + result.stdout


def test_guest_that_cannot_be_had(project: Project) -> None:
    project.write(test_it__py="def test_one(): ...\ndef test_two(): ...\n")
    result = project.pytest("--guest", "--guest-kernel=/nowhere/bzImage")
    assert result.returncode == 1
    assert [outcome(case) for case in project.cases().values()] == ["error", "error"]
    assert "there is no kernel image /nowhere/bzImage" in result.stdout


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


def _descendants(process: int) -> Iterator[int]:
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in task.read_text().split():
            yield int(child)
            yield from _descendants(int(child))


def test_killed_run_leaves_no_process(project: Project) -> None:
    project.write(test_long__py="import time\ndef test_long():\n    time.sleep(1000)\n")
    with subprocess.Popen(
        project.command("--guest"), cwd=project.folder, env=project.environ(), stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        left: list[int] = []
        while not any(b"\0-kernel\0" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left):
            assert time.monotonic() < deadline
            time.sleep(0.5)
            left = list(_descendants(process.pid))
        process.kill()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_shell_at_the_first_failure(project: Project) -> None:
    project.write(
        test_fail__py="""\
        import pathlib, pytest

        flag = pathlib.Path("/tmp/flag")

        @pytest.fixture
        def flagged():
            flag.write_text("still set up")
            yield
            flag.unlink()

        def test_fails(flagged):
            assert 0

        def test_goes_on():
            assert not flag.exists()
        """
    )
    without = project.pytest("--guest", "--guest-shell")
    assert "there is no terminal" in without.stdout
    assert "1 failed, 1 passed" in without.stdout

    child, terminal = os.forkpty()
    if child == 0:
        try:
            os.chdir(project.folder)
            command = project.command("--guest", "--guest-shell", "-v", "--color=no")
            os.execve(command[0], command, project.environ())  # noqa: S606
        finally:
            os._exit(127)
    said = b""
    steps = [
        (b"is a shell in the guest", b""),
        (b"# ", b"cat /tmp/flag; echo; tty; echo $((6 * 7))0\n"),
        (b"420\r\n", b"exit\n"),
    ]
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break  # the last who had it open has gone
        said += piece
        while steps and steps[0][0] in said:
            said = said.partition(steps[0][0])[2] if not steps[0][1] else said
            answer = steps.pop(0)[1]
            if answer:
                os.write(terminal, answer)
                break
    else:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    output = said.decode()
    assert "still set up" in output
    assert "/dev/pts/" in output
    assert "1 failed, 1 passed" in output
    assert status == 1
