"""How much memory a user may lock."""

from __future__ import annotations

import grp
import os
import resource
import subprocess
from pathlib import Path

import pytest

from pyiommufd.host import limits
from pyiommufd.host.limits import LockLimit, lock_limit
from pyiommufd.host.users import User, find_user

NOBODY = find_user("nobody")


@pytest.fixture
def security(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(limits, "SECURITY", tmp_path)
    (tmp_path / "limits.d").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        (["nobody hard memlock 64"], 64 << 10),
        (["nobody - memlock unlimited"], None),
        (["nobody - memlock infinity  # as a VM wants it"], None),
        (["* hard memlock 1", "nobody hard memlock -1"], None),
        (["nobody hard memlock 3", "* hard memlock 1"], 3 << 10),
        (["* hard memlock 1", "* hard memlock 2"], 2 << 10),
        (["@{group} hard memlock 5", "* hard memlock 1"], 5 << 10),
        (["* hard memlock 7", "nobody soft memlock 1", "nobody hard nofile 1", "root hard memlock 1"], 7 << 10),
        (["* hard memlock 7", "nobody hard memlock", "nobody hard memlock many", "@nobodies hard memlock 1"], 7 << 10),
    ],
)
def test_configuration_of_the_login(security: Path, lines: list[str], size: int | None) -> None:
    text = "\n".join(lines).replace("{group}", grp.getgrgid(NOBODY.gid or 0).gr_name)
    (security / "limits.conf").write_text(f"# comment\n{text}\n")
    limit = lock_limit(NOBODY)
    assert limit.size == size
    assert "limits.conf: " in limit.evidence


def test_later_files_win(security: Path) -> None:
    (security / "limits.conf").write_text("nobody hard memlock 1\n")
    (security / "limits.d/20-b.conf").write_text("nobody hard memlock 3\n")
    (security / "limits.d/10-a.conf").write_text("nobody hard memlock 2\n")
    (security / "limits.d/30-c").write_text("nobody hard memlock 4\n")
    limit = lock_limit(NOBODY)
    assert limit.size == 3 << 10
    assert "20-b.conf" in limit.evidence


def test_running_process_tells(security: Path) -> None:
    """The lowest of several."""
    uid = os.getuid() or 4000321
    sizes = (12288, 8192, 16384)
    processes = [
        subprocess.Popen(
            ["sleep", "600"],
            user=None if os.getuid() else uid,
            preexec_fn=lambda size=size: resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, size)),
        )
        for size in sizes
    ]
    try:
        limit = lock_limit(User("somebody", uid))
        assert limit == LockLimit(8192, f"the limit of the user's process {processes[1].pid} (sleep)")
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_user_without_processes_has_that_of_most(security: Path) -> None:
    limit = lock_limit(User("4000123", 4000123))
    text = next(line for line in Path("/proc/1/limits").read_text().splitlines() if line.startswith("Max locked"))
    assert limit.size == (None if text.split()[4] == "unlimited" else int(text.split()[4]))
    assert limit.evidence == "the limit of process 1"


def test_root_may_lock_any_amount(security: Path) -> None:
    (security / "limits.conf").write_text("* hard memlock 1\n")
    assert lock_limit(find_user("root")).size is None


def test_advice() -> None:
    assert "any amount" in LockLimit(None, "here").advice(NOBODY)
    text = LockLimit(8 << 20, "there").advice(NOBODY)
    assert "at most 8 MiB" in text
    assert "(there)" in text
    assert "echo 'nobody - memlock unlimited' >" in text
