"""Wrong arguments of `Guest` are refused when it is made, by errors that name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyiommufd.testing import Edu, Guest, RawDevice, RootPort, SharedGroup
from pyiommufd.testing.guest.arguments import check_arguments


@pytest.mark.parametrize(
    ("name", "value", "kind", "said"),
    [
        ("iommu", "foo", ValueError, "Guest(iommu='foo'): choose one of intel, "),
        ("iommu", ["intel"], ValueError, "choose one of intel, "),
        ("devices", [Edu], TypeError, "Edu is a class: a device is Edu(…)"),
        ("devices", [Edu(), 3], TypeError, "3 is not a device, such as Edu()"),
        ("devices", Edu(), TypeError, "a list is wanted, such as [Edu()]"),
        ("devices", "edu", TypeError, "Guest(devices='edu'): a list is wanted"),
        ("devices", [Edu(dma_mask="all")], ValueError, "Guest(devices=[Edu(dma_mask='all'"),  # type: ignore[arg-type]
        ("kernel", 6.12, TypeError, "Guest(kernel=6.12): a string is wanted, a path or a version such as '6.12'"),
        ("kernel", b"/k", TypeError, "a string is wanted"),
        ("qemu", 3, TypeError, "Guest(qemu=3): a string is wanted, a path or the name of a program"),
        ("memory", 1, ValueError, "Guest(memory=1): a whole number of MiB is wanted, 64 or more"),
        ("memory", "lots", TypeError, "Guest(memory='lots'): a whole number of MiB is wanted"),
        ("cpus", 0, ValueError, "Guest(cpus=0): a whole number is wanted, 1 or more"),
        ("cpus", "two", TypeError, "Guest(cpus='two'): a whole number"),
        ("cpus", True, TypeError, "Guest(cpus=True): a whole number"),
        ("kernel_arguments", [3], TypeError, "Guest(kernel_arguments=[3]): a list of strings is wanted"),
        ("kernel_arguments", "quiet", TypeError, "Guest(kernel_arguments='quiet'): a list is wanted"),
        ("qemu_arguments", [3], TypeError, "Guest(qemu_arguments=[3]): a list of strings is wanted"),
        ("folder", 3, TypeError, "Guest(folder=3): a string is wanted, the path of a folder"),
        ("results", 3, TypeError, "Guest(results=3): "),
        ("read_only", "/srv", TypeError, "Guest(read_only='/srv'): a list is wanted"),
        ("boot_timeout", -1, ValueError, "Guest(boot_timeout=-1): a positive number of seconds"),
        ("boot_timeout", "1", TypeError, "Guest(boot_timeout='1'): a number of seconds"),
        ("accelerator", 3, TypeError, "Guest(accelerator=3): a string is wanted"),
        ("ports", "port", TypeError, "Guest(ports='port'): a list is wanted"),
        ("trace", 1, TypeError, "Guest(trace=1): True or False"),
    ],
)
def test_wrong(name: str, value: object, kind: type[Exception], said: str) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(kind) as caught:
        Guest(**given)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"Guest({name}=")


@pytest.mark.parametrize("device", [Edu, "edu", 3])
def test_devices_behind_bridges(device: Any) -> None:
    for make in (RootPort, lambda one: SharedGroup(Edu(), one)):
        with pytest.raises(TypeError, match="device"):
            make(device)


def test_commands_are_lists() -> None:
    with pytest.raises(TypeError, match=r"argv='ls -l': a list is wanted"):
        Guest().run("ls -l")


def test_plain_values() -> None:
    given = {"devices": iter([Edu(), "edu"]), "kernel": Path("/k"), "qemu": None, "kernel_arguments": ["a"]}
    assert check_arguments("guest", given) == {
        "devices": (Edu(), RawDevice("edu")),
        "kernel": "/k",
        "qemu": None,
        "kernel_arguments": ("a",),
    }
