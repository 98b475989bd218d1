"""What the SMMUv3 driver refuses is named by its field, each field and no other."""

from __future__ import annotations

import pytest

from pyiommufd.diagnose.smmuv3 import STE, command_faults, command_name, mask, ste_faults

VALID = 1 | 5 << 1


def test_a_good_entry_has_no_faults() -> None:
    everything = mask(STE, 0) & ~(0b1110 | 0x30), mask(STE, 1) & ~(1 << 29)
    assert ste_faults((everything[0] | VALID, everything[1])) == []
    assert ste_faults((1 | 4 << 1, 0)) == []
    assert ste_faults((1, 0)) == []


def test_nothing_is_looked_at_without_v() -> None:
    assert ste_faults((0xFFFF_FFFF_FFFF_FFFE, 0xFFFF_FFFF_FFFF_FFFF)) == []


@pytest.mark.parametrize(
    ("ste", "text"),
    [
        ((1 | 6 << 1, 0), "Config is 0b110"),
        ((1 | 7 << 1, 0), "Config is 0b111"),
        ((VALID, 2 << 28), "EATS is 0b10"),
        ((VALID, 1 << 25), "S2FWB is 0x1: it is not the VM's"),
        ((VALID, 1 << 44), "SHCFG is 0x1: it is not the VM's"),
        ((VALID | 1 << 55, 0), "the bits 0x80000000000000 of word 0 are reserved"),
        ((VALID, 1 << 62), "the bits 0x4000000000000000 of word 1 are reserved"),
    ],
)
def test_each_fault_is_named(ste: tuple[int, int], text: str) -> None:
    [found] = ste_faults(ste)
    assert text in found


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ((0x03, 0), "a VM may not give a command of opcode 0x3"),
        ((0x30 | 1 << 32, 0), "the bits 0x100000000 of word 0 are reserved"),
        ((0x11 | 1 << 12, 0), "the bits 0x1000 of word 0 are reserved"),
        ((0x12 | 1 << 12, 0x1000), "have to be 0 where TG is"),
        ((0x13, 0x1000 | 1 << 10), "TG without NUM, SCALE and TTL"),
        ((0x40, 53), "Size is 53"),
        ((0x06, 1), "the bits 0x1 of word 1 are reserved"),
    ],
)
def test_what_is_wrong_with_a_command(command: tuple[int, int], text: str) -> None:
    [found] = command_faults(command)
    assert text in found


def test_commands_have_names() -> None:
    assert (command_name(0x12), command_name(0xFF)) == ("TLBI_NH_VA", "command 0xff")
