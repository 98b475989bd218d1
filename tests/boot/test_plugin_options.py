"""`pytest --guest`: wrong usage, and the shell in the guest."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.boot.plugin_project import Project
from tests.patience import patience

pytestmark = pytest.mark.boots


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
    deadline = time.monotonic() + patience()
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
