"""The power goes at each step of a claim: what the next boot finds."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from pyiommufd.testing import Guest, GuestError
from tests.sweeps import sample

pytestmark = [
    pytest.mark.boots,
    # A folder that the guest shares with this machine has this user's files.
    pytest.mark.skipif(os.geteuid() != 0, reason="the record has to be root's, in the guest as here"),
]

STEPS = 7
"""Of a claim of the shared group of the default machine."""


def test_power_cut_at_each_step_of_a_claim(capsys: pytest.CaptureFixture[str]) -> None:
    """With the record on a disk that outlives the boot, which /run is not: each boot finds that of the one before."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for number in (*sample("boot.power_cut", range(STEPS + 1), 2), STEPS + 1):
            ended = ""
            with Guest(results=folder) as guest:
                try:
                    done = guest.run(["python", "tests/boot/power_cut.py", str(number)], timeout=300)
                    assert not done.returncode, done.stderr.decode()
                except GuestError as error:
                    ended = str(error)
            said = (Path(folder) / f"said{number}").read_text().splitlines()
            assert bool(ended) == any("the power goes" in line for line in said), (ended, said)
            rows.append(said)
    with capsys.disabled():
        print("\nthe power cut in a claim, and what the next boot finds")
        for row in rows:
            print("  " + "; ".join(row))
    for number, row in enumerate(rows):
        found = "no record" if not number else "a record of an earlier boot, dropped"
        assert row[0] == f"host drivers in place, {found}"
    assert {row[1].partition(" goes ")[0] for row in rows[:-1]} == {"the power"}
    assert rows[-1][1:] == ["claimed and given back"]
