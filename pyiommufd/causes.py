"""What explains errors: causes of a refusal by the kernel, reasons not to take a device, and what to do about it.

`pyiommufd.errors` has these names as well. It imports this module when one is first used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pyiommufd.printable import Sentences


class DeviceLike(Protocol):
    """The protocol of a device in an exception; `HostDevice` has it."""

    @property
    def subsystem(self) -> str:
        """The bus of the device, such as ``pci``."""

    @property
    def name(self) -> str:
        """The name of the device on its bus."""

    @property
    def driver(self) -> str | None:
        """The driver that the device was on."""


class Fix(NamedTuple):
    """What to do about a refusal, in two forms: exceptions show the first, commands the second.

    Attributes:
        python: For a caller of the library: ``plan_claim(['0000:02:01.0']).apply()``.
        command: For a user of the command line: ``pyiommufd claim 0000:02:01.0``; of what no command does, in the
            kernel's terms.
    """

    python: str
    command: str

    def _part(self, *, command: bool) -> str:
        """Its text as a part of a message."""
        return f"; {self.command if command else self.python}"


@dataclass(frozen=True, slots=True, repr=False)
class Cause(Sentences):
    """One reason why the kernel may have refused, as found on this machine.

    Attributes:
        summary: What is wrong, in a sentence.
        evidence: What was seen when the error was raised; empty where the kernel shows nothing.
        fix: What to do about it, in Python where that is called for.
        command: The same for a command to print; empty where it is no different.
    """

    summary: str
    evidence: str = ""
    fix: str = ""
    command: str = ""

    def __str__(self) -> str:
        return self._text(self.fix)

    def for_command(self) -> str:
        """Its text as a command prints it."""
        return self._text(self.command or self.fix)

    def _part(self, *, command: bool) -> str:
        """Its text as a part of a message: a line of its own."""
        return f"\n  {self.for_command() if command else self}"

    def _text(self, fix: str) -> str:
        text = self.summary
        if self.evidence:
            text += f" ({self.evidence})"
        if fix:
            text += f"; {fix}"
        return text


NEVER_FORCED = "claimed"
"""The kind of refusals that nothing overrides: a claim has the device, and two of one device do not go together."""


@dataclass(frozen=True, slots=True, repr=False)
class Refusal(Sentences):
    """One reason not to take a device from the host.

    Attributes:
        device: The name of the device.
        kind: What it is doing, as named to ``force``: ``mounted``, ``swap``, ``default-route``, ``held`` …
        reason: What it is doing, in a sentence.
        fix: What to do about it, in Python where that is called for; empty where the reason says it.
        command: The same for a command to print; empty where it is no different.
        needs: What has to be so before ``force`` is of any use, in words after "once"; empty: nothing.
        leaves: What stays in the way, or comes of it, where it is forced, in a sentence; empty: nothing to tell of.
    """

    device: str
    kind: str
    reason: str
    fix: str = ""
    command: str = ""
    needs: str = ""
    leaves: str = ""

    def __str__(self) -> str:
        return self._text(self.fix)

    def for_command(self) -> str:
        """Its text as a command prints it."""
        return self._text(self.command or self.fix)

    def _text(self, fix: str) -> str:
        return f"{self.device}: {self.reason}{f'; {fix}' if fix else ''} [{self.kind}]"


def override(refusals: Iterable[Refusal]) -> Fix:
    """How refusals can be overridden, or that they cannot."""
    refusals = list(refusals)
    kinds = list(dict.fromkeys(refusal.kind for refusal in refusals))
    if NEVER_FORCED in kinds:
        never = f"nothing overrides {NEVER_FORCED}"
        return Fix(never, never)
    needs = " and ".join(dict.fromkeys(refusal.needs for refusal in refusals if refusal.needs))
    what = f"to override, once {needs}" if needs else "to override"
    leaves = "".join(f"; {text}" for text in dict.fromkeys(refusal.leaves for refusal in refusals if refusal.leaves))
    listed = ", ".join(f'"{kind}"' for kind in kinds)
    options = " ".join(f"--force {kind}" for kind in kinds)
    return Fix(f"{what}: force=[{listed}]{leaves}", f"{what}: {options}{leaves}")
