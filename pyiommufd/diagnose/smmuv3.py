"""What Linux's SMMUv3 driver refuses of a stream table entry or a command, by the names of its fields.

Linux 7.3, drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-iommufd.c: a wrong field is EIO, and nothing says which it was. The
names and places of the fields: Arm IHI 0070, 4 (commands) and 5.2 (stream table entry).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Fields = Mapping[str, tuple[int, int, int]]
"""Fields by their names: the number of the 64-bit word, and the first and the last bit."""

STE: Fields = {
    "V": (0, 0, 0), "Config": (0, 1, 3), "S1Fmt": (0, 4, 5), "S1ContextPtr": (0, 6, 51), "S1CDMax": (0, 59, 63),
    "S1DSS": (1, 0, 1), "S1CIR": (1, 2, 3), "S1COR": (1, 4, 5), "S1CSH": (1, 6, 7), "S1STALLD": (1, 27, 27),
    "EATS": (1, 28, 29),
}  # fmt: skip
"""The fields of a stream table entry that a VM may set."""

_NOT_THE_VMS: Fields = {
    "S2HWU": (1, 8, 11), "DRE": (1, 12, 12), "CONT": (1, 13, 16), "DCP": (1, 17, 17), "PPAR": (1, 18, 18),
    "MEV": (1, 19, 19), "SW_RESERVED": (1, 20, 23), "S2FWB": (1, 25, 25), "STRW": (1, 30, 31), "MemAttr": (1, 32, 35),
    "MTCFG": (1, 36, 36), "ALLOCCFG": (1, 37, 40), "SHCFG": (1, 44, 45), "NSCFG": (1, 46, 47), "PRIVCFG": (1, 48, 49),
    "INSTCFG": (1, 50, 51),
}  # fmt: skip

ABORT, BYPASS, STAGE_1 = 0, 4, 5
"""What Config may be: DMA is aborted, goes by the second stage alone, or by both."""

_VMID = {"VMID": (0, 32, 47)}
_ASID = {"ASID": (0, 48, 63)}
_STREAM = {"StreamID": (0, 32, 63)}
_SUBSTREAM = {"SSV": (0, 11, 11), "SubstreamID": (0, 12, 31)}
_VA = {
    "NUM": (0, 12, 16), "SCALE": (0, 20, 25), "Leaf": (1, 0, 0), "TTL": (1, 8, 9), "TG": (1, 10, 11),
    "Address": (1, 12, 63),
}  # fmt: skip

COMMANDS: Mapping[int, tuple[str, Fields]] = {
    0x05: ("CFGI_CD", {"SubstreamID": (0, 12, 31), "Leaf": (1, 0, 0)} | _STREAM),
    0x06: ("CFGI_CD_ALL", _STREAM),
    0x10: ("TLBI_NH_ALL", _VMID),
    0x11: ("TLBI_NH_ASID", _ASID | _VMID),
    0x12: ("TLBI_NH_VA", _VA | _ASID | _VMID),
    0x13: ("TLBI_NH_VAA", _VA | _VMID),
    0x30: ("TLBI_NSNH_ALL", {}),
    0x40: ("ATC_INV", {"Global": (0, 9, 9), "Size": (1, 0, 5), "Address": (1, 12, 63)} | _SUBSTREAM | _STREAM),
}
"""The commands that a VM may give, by their opcodes: their names, and the fields that they have beside it."""


def mask(fields: Fields, word: int) -> int:
    """The bits of a word that belong to any of the fields."""
    return sum(((1 << (last - first + 1)) - 1) << first for at, first, last in fields.values() if at == word)


def value(words: Sequence[int], field: tuple[int, int, int]) -> int:
    """What a field holds."""
    at, first, last = field
    return words[at] >> first & ((1 << (last - first + 1)) - 1)


def ste_faults(ste: Sequence[int]) -> list[str]:
    """What the driver refuses of a stream table entry, in words."""
    if not value(ste, STE["V"]):
        return []  # the driver looks at nothing else
    found = _foreign(ste, STE, _NOT_THE_VMS)
    config = value(ste, STE["Config"])
    if config not in (ABORT, BYPASS, STAGE_1):
        found.append(
            f"Config is {config:#b}: it may be {ABORT:#b} (abort), {BYPASS:#b} (bypass) or {STAGE_1:#b} (stage 1)"
        )
    if value(ste, STE["EATS"]) > 1:
        found.append(f"EATS is {value(ste, STE['EATS']):#b}: it may be 0b0 (no ATS) or 0b1 (ATS)")
    return found


def command_name(opcode: int) -> str:
    """What a command is called."""
    return COMMANDS[opcode][0] if opcode in COMMANDS else f"command {opcode:#x}"


def command_faults(command: Sequence[int]) -> list[str]:
    """What the driver refuses of a command, in words, as far as the command alone shows it."""
    opcode = command[0] & 0xFF
    if opcode not in COMMANDS:
        known = ", ".join(name for name, _ in COMMANDS.values())
        return [f"a VM may not give a command of opcode {opcode:#x}; it may give {known}"]
    _, fields = COMMANDS[opcode]
    found = _foreign(command, {"Opcode": (0, 0, 7), **fields}, {})
    if "TG" in fields:
        granule, level = value(command, fields["TG"]), value(command, fields["TTL"])
        many = value(command, fields["NUM"]) or value(command, fields["SCALE"])
        if not granule and (many or level):
            found.append("NUM, SCALE and TTL have to be 0 where TG is")
        elif granule and not many and not level:
            found.append("TG without NUM, SCALE and TTL is reserved")
    if "Size" in fields and value(command, fields["Size"]) > 52:
        found.append(f"Size is {value(command, fields['Size'])}: at most 52, which is everything")
    return found


def _foreign(words: Sequence[int], allowed: Fields, named: Fields) -> list[str]:
    """The bits that are set and belong to none of the fields, by the names that they have."""
    found = []
    for word, content in enumerate(words):
        rest = content & ~mask(allowed, word)
        for name, (at, first, last) in named.items():
            if at == word and (inside := value(words, (at, first, last))):
                found.append(f"{name} is {inside:#x}: it is not the VM's")
                rest &= ~(((1 << (last - first + 1)) - 1) << first)
        if rest:
            found.append(f"the bits {rest:#x} of word {word} are reserved")
    return found
