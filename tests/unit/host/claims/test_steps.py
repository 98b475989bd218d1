"""Single changes to the machine, in words and as a shell's lines."""

from __future__ import annotations

import pytest

from pyiommufd.host.claims.steps import Action, Step

NAME = "0000:02:03.0"
DEVICE = f"/sys/bus/pci/devices/{NAME}"


@pytest.mark.parametrize(
    ("action", "value", "words", "command"),
    [
        (Action.LOAD_DRIVER, "vfio-pci", "load the driver vfio-pci", "modprobe vfio-pci"),
        (Action.SET_OVERRIDE, "x", "set driver_override to x", f"echo x > {DEVICE}/driver_override"),
        (Action.SET_OVERRIDE, "a b", "set driver_override to a b", f"echo 'a b' > {DEVICE}/driver_override"),
        (Action.CLEAR_OVERRIDE, None, "clear driver_override", f"echo > {DEVICE}/driver_override"),
        (Action.UNBIND, "nvme", "unbind from nvme", f"echo {NAME} > /sys/bus/pci/drivers/nvme/unbind"),
        (Action.BIND, "nvme", "bind to nvme", f"echo {NAME} > /sys/bus/pci/drivers/nvme/bind"),
        (
            Action.PROBE,
            "nvme",
            "let its host driver take it: nvme",
            f'modprobe "$(cat {DEVICE}/modalias)"; echo {NAME} > /sys/bus/pci/drivers_probe',
        ),
        (Action.SET_VFS, "4", "set sriov_numvfs to 4", f"echo 4 > {DEVICE}/sriov_numvfs"),
        (Action.SET_AUTOPROBE, "0", "set sriov_drivers_autoprobe to 0", f"echo 0 > {DEVICE}/sriov_drivers_autoprobe"),
        (Action.SET_POWER, "auto", "set power/control to auto", f"echo auto > {DEVICE}/power/control"),
        (Action.GRANT, "alice", "let alice open it", f"# {NAME}: let alice open it"),
    ],
)
def test_words_and_command(action: Action, value: str | None, words: str, command: str) -> None:
    step = Step(NAME, action, value, "/sys/devices/pci0000:00/x")
    assert str(step) == f"{NAME}: {words}"
    assert step.command == command
    # Where the device lies is no part of what is done.
    assert step == Step(NAME, action, value)
