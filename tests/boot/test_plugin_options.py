"""`pytest --guest`: wrong usage, and the shell in the guest."""

from __future__ import annotations

import pytest

from tests.boot.plugin_project import Project
from tests.terminal import end_of, on_terminal

pytestmark = pytest.mark.boots


@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        (["--guest", "--pdb"], "", "--guest-shell"),
        (["--guest-shell"], "", "with --guest only"),
        (["--guest", "--guest-shell", "-n", "2"], "", "a worker has no terminal"),
        (["--guest", "--guest-timeout=0"], "", "--guest-timeout: a positive number of seconds is wanted, not '0'"),
        (["--guest", "--guest-timeout=abc"], "", "--guest-timeout: a positive number of seconds is wanted, not 'abc'"),
        (["--guest", "--guest-iommu=arm"], "", "intel-first-stage"),
        (["--guest"], "@pytest.mark.guest(iomu='intel')", "test_wrong.py::test_it: guest(iomu=…): there is only iommu"),
        (["--guest"], "@pytest.mark.guest('intel')", "keyword arguments only"),
        (["--guest"], "@pytest.mark.guest(devices='edu')", "a list is wanted"),
        (["--guest"], "@pytest.mark.guest(qemu_arguments=[3])", "guest(qemu_arguments=[3]): a list of strings"),
    ],
)
def test_wrong_usage(project: Project, arguments: list[str], text: str, said: str) -> None:
    (project.folder / "test_wrong.py").write_text(f"import pytest\n{text}\ndef test_it(): ...\n")
    result = project.pytest(*arguments)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR, result.stdout
    assert said in result.stderr + result.stdout


def test_options_without_effect_are_named(project: Project) -> None:
    """They are no error: an ini file may have them for the runs that are in a guest."""
    project.write(test_it__py="def test_it(): ...\n")
    options = ["--guest-kernel=6.12", "--guest-timeout=600"]
    result = project.pytest("-o", f"addopts={' '.join(options)}")
    assert result.returncode == 0
    assert "guest: none; of use with --guest only: --guest-kernel, --guest-timeout" in result.stdout
    assert "of use with --guest only" not in project.pytest().stdout


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

    terminal = on_terminal(
        "env", "-C", str(project.folder), *project.command("--guest", "--guest-shell", "-v", "--color=no"),
        environment=project.environ(),
    )  # fmt: skip
    terminal.expect_exact("is a shell in the guest")
    terminal.sendline("cat /tmp/flag; echo; tty; echo $((6 * 7))0; exit")
    terminal.expect_exact("still set up")
    terminal.expect_exact("/dev/pts/")
    terminal.expect_exact("420\r\n")
    assert end_of(terminal) == 1
    assert "1 failed, 1 passed" in str(terminal.before)
