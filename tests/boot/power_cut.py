"""Run in a guest by test_power_cut.py: checks what an earlier boot has left, then claims, and ends the guest at a step.

    python tests/boot/power_cut.py NUMBER

The step of that number is not taken any more; the one after the last is the end of the claim, and then comes none.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pyiommufd import find_device, plan_claim, recover, release
from pyiommufd.host import durable
from pyiommufd.host.claims import journal
from pyiommufd.host.drivers import driver_override
from tests.dry_run import dry_run

RUN = Path("/results/run")
NAMES = ("0000:02:01.0", "0000:02:02.0", "0000:02:03.0")
AT_ONCE = 0x01234567
"""reboot(2) without ending or writing anything first."""


def say(text: str) -> None:
    """Have it on the host before this guest ends, which its output may not be."""
    with open(f"/results/said{sys.argv[1]}", "a") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    journal.RUN = RUN
    left = list(RUN.glob("*.json")) if RUN.is_dir() else []
    found = [find_device(name) for name in NAMES]
    assert [device.driver for device in found] == [None, None, "virtio-pci"], found
    assert [driver_override(device) for device in found] == [None] * 3, found
    assert dry_run(release) == dry_run(recover) == ()
    assert recover() == []
    assert not list(RUN.glob("*.json"))
    say("host drivers in place, " + ("a record of an earlier boot, dropped" if left else "no record"))

    at = int(sys.argv[1])
    count = itertools.count()
    commit = durable.commit
    plan = plan_claim(NAMES[0])

    def cut(what: str, change: Callable[[], None]) -> None:
        if not what.startswith("record that") and next(count) == at:
            say(f"the power goes before: {what}")
            ctypes.CDLL(None).reboot(AT_ONCE)
        commit(what, change)

    durable.commit = cut
    with plan.apply():
        durable.commit = commit
    say("claimed and given back")


if __name__ == "__main__":
    main()
