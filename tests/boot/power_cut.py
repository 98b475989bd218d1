"""Run in a guest by test_power_cut.py: checks what an earlier boot has left, then claims, and ends the guest at a step.

    python tests/boot/power_cut.py NUMBER

The step of that number is not taken any more; the one after the last is the end of the claim, and then comes none.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable
from pathlib import Path

from pyiommufd import find_device, plan_claim, recover
from pyiommufd.host import journal, steps
from pyiommufd.host.claim import recover_steps, release_steps

RUN = Path("/results/run")
NAMES = ("0000:02:01.0", "0000:02:02.0", "0000:02:03.0")
AT_ONCE = 0x01234567
"""reboot(2) without ending or writing anything first."""


def main() -> None:
    journal.RUN = RUN
    left = list(RUN.glob("*.json")) if RUN.is_dir() else []
    drivers = [find_device(name).driver for name in NAMES]
    overrides = [(find_device(name).sys_path / "driver_override").read_text().strip() for name in NAMES]
    assert drivers == [None, None, "virtio-pci"], drivers
    assert overrides == ["(null)"] * 3, overrides
    assert release_steps() == recover_steps() == ()
    assert recover() == []
    assert not list(RUN.glob("*.json"))
    print("host drivers in place, " + ("a record of an earlier boot, dropped" if left else "no record"), flush=True)

    at = int(sys.argv[1])
    count = itertools.count()
    cross = steps.cross
    plan = plan_claim(NAMES[0])

    def cut(what: str, change: Callable[[], None]) -> None:
        if not what.startswith("record that") and next(count) == at:
            print(f"the power goes before: {what}", flush=True)
            ctypes.CDLL(None).reboot(AT_ONCE)
        cross(what, change)

    steps.cross = cut
    with plan.apply():
        steps.cross = cross
    print("claimed and given back")


if __name__ == "__main__":
    main()
