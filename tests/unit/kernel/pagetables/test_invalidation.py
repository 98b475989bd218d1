"""What is invalidated: the bits of each command are where Arm and Intel put them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from pyiommufd import SMMUv3Command, TypedData, VTdInvalidation
from pyiommufd.diagnose.smmuv3 import COMMANDS, command_faults, value


def fields(command: SMMUv3Command) -> dict[str, int]:
    """The fields of a command that are not 0, by the table of the diagnosis."""
    _, known = COMMANDS[command.opcode]
    return {name: found for name, field in known.items() if (found := value(command.words, field))}


@pytest.mark.parametrize(
    ("command", "name", "expected"),
    [
        (SMMUv3Command.tlbi_all(), "TLBI_NSNH_ALL", {}),
        (SMMUv3Command.tlbi_nh_all(), "TLBI_NH_ALL", {}),
        (SMMUv3Command.tlbi_asid(0xABCD), "TLBI_NH_ASID", {"ASID": 0xABCD}),
        (SMMUv3Command.tlbi_va(0x12345000, 7), "TLBI_NH_VA", {"Address": 0x12345, "ASID": 7}),
        (SMMUv3Command.tlbi_va(0x12345000, leaf=True), "TLBI_NH_VAA", {"Address": 0x12345, "Leaf": 1}),
        (SMMUv3Command.tlbi_va(0x1000, 1, pages=6), "TLBI_NH_VA", {"Address": 1, "ASID": 1, "NUM": 5, "TG": 1}),
        (SMMUv3Command.tlbi_va(0, pages=512), "TLBI_NH_VAA", {"NUM": 31, "SCALE": 4, "TG": 1}),
        (SMMUv3Command.cfgi_cd(0x77), "CFGI_CD", {"StreamID": 0x77, "Leaf": 1}),
        (SMMUv3Command.cfgi_cd(1, 0xFFFFF, leaf=False), "CFGI_CD", {"StreamID": 1, "SubstreamID": 0xFFFFF}),
        (SMMUv3Command.cfgi_cd_all(0xFFFFFFFF), "CFGI_CD_ALL", {"StreamID": 0xFFFFFFFF}),
        (SMMUv3Command.atc_inv(5), "ATC_INV", {"StreamID": 5, "Size": 52}),
        (
            SMMUv3Command.atc_inv(5, 0x7000, 0, substream_id=3),
            "ATC_INV",
            {"StreamID": 5, "Address": 7, "SSV": 1, "SubstreamID": 3},
        ),
    ],
)
def test_a_command_has_its_fields_and_nothing_else(command: SMMUv3Command, name: str, expected: dict[str, int]) -> None:
    assert COMMANDS[command.opcode][0] == name
    assert fields(command) == expected
    assert command_faults(command.words) == []
    assert bytes(command) == struct.pack("<2Q", *command.words)
    assert repr(command).startswith(f"<SMMUv3Command {name}, 0x")


def test_ranges_that_a_command_can_be_told() -> None:
    for pages in (2, 32, 33 * 2, 31 << 10, 32 << 31):
        if pages == 66:
            with pytest.raises(ValueError, match="66 pages"):
                SMMUv3Command.tlbi_va(0, pages=pages)
        else:
            found = fields(SMMUv3Command.tlbi_va(0, pages=pages))
            assert (found["NUM"] + 1) << found.get("SCALE", 0) == pages


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (VTdInvalidation(), (0, (1 << 64) - 1, 0, 0)),
        (VTdInvalidation(0x5000, 3), (0x5000, 3, 0, 0)),
        (VTdInvalidation(0, 1, leaf=True), (0, 1, 1, 0)),
    ],
)
def test_what_vtd_is_told(entry: VTdInvalidation, expected: tuple[int, ...]) -> None:
    assert struct.unpack("=2Q2I", bytes(entry)) == expected


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: SMMUv3Command.tlbi_va(0x1001), ValueError, "page boundary"),
        (lambda: SMMUv3Command.tlbi_va(0x1000, 1 << 16), ValueError, "asid is a number of 16 bits"),
        (lambda: SMMUv3Command.tlbi_va(0x1000, pages=0), ValueError, "0 pages"),
        (lambda: SMMUv3Command.tlbi_asid(-1), ValueError, "asid is a number of 16 bits"),
        (lambda: SMMUv3Command.cfgi_cd(1 << 32), ValueError, "stream_id is a number of 32 bits"),
        (lambda: SMMUv3Command.cfgi_cd(0, 1 << 20), ValueError, "substream_id is a number of 20 bits"),
        (lambda: SMMUv3Command.cfgi_cd(0, leaf=1), TypeError, "leaf is True or False"),  # type: ignore[arg-type]
        (lambda: SMMUv3Command.atc_inv(0, 0x10), ValueError, "page boundary"),
        (lambda: SMMUv3Command.atc_inv(0, 0, 64), ValueError, "size is a number of 6 bits"),
        (lambda: SMMUv3Command((0, 0, 0)), ValueError, "a command has 2 words"),
        (lambda: VTdInvalidation(0x1000), ValueError, "without pages"),
        (lambda: VTdInvalidation(0x800, 1), ValueError, "page boundary"),
        (lambda: VTdInvalidation(0x1000, 0), ValueError, "at least 1"),
    ],
)  # fmt: skip
def test_what_no_command_can_say(make: Callable[[], TypedData], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()
