"""The kernel's log as a test sees it: what is new, and whether any of it tells of trouble.

Read from ``/dev/kmsg``, where every reader has a position of its own and nothing is taken away from others.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from pyiommufd.closing import Closing

PATH = "/dev/kmsg"

_RECORD = 8192 + 512  # the kernel refuses, with EINVAL, a buffer that its longest record does not fit
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")

ERROR = 3
"""The level of KERN_ERR; more urgent ones are lower."""

# What is wrong at whatever level it was printed.
_TROUBLE = re.compile(
    r"WARNING: |\bBUG: |kernel BUG at |Oops[: ]|Call Trace:|general protection fault|Kernel panic"
    r"|refcount_t: |UBSAN: |INFO: task .* blocked for more than|rcu: INFO: .* detected stall"
    r"|possible (?:recursive|circular) locking|unable to handle "
)
_CUT = "[ cut here ]"
_END = "---[ end trace"
_TRACE = "Call Trace:"
_BEFORE_TRACE = re.compile(r"CPU: \d+ |Hardware name: |FAULT_INJECTION: |NMI backtrace ")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One record of the kernel's log.

    Attributes:
        level: 0 (emergency) to 7 (debug); `ERROR` is 3.
        facility: 0 for the kernel; what a program wrote to ``/dev/kmsg`` has another.
        sequence: Its number since boot.
        time: Seconds since boot, of the clock that ``dmesg`` shows.
        text: The message; of several lines where it was printed as one.
        device: What the kernel says that it is about, such as ``pci:0000:00:01.0``; empty where it does not.
    """

    level: int
    facility: int
    sequence: int
    time: float
    text: str
    device: str = ""

    @classmethod
    def parse(cls, record: str) -> Self:
        """One record as ``/dev/kmsg`` gives it (Linux, Documentation/ABI/testing/dev-kmsg).

        Raises:
            ValueError: It is no such record.
        """
        first, *rest = record.split("\n")
        head, _, text = first.partition(";")
        priority, sequence, microseconds = head.split(",")[:3]
        # What follows in lines of their own that start with a space are properties, such as DEVICE=+pci:0000:00:01.0.
        facts = dict(line.strip().partition("=")[::2] for line in rest if line.startswith(" "))
        text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
        level, facility = int(priority) & 7, int(priority) >> 3
        return cls(level, facility, int(sequence), int(microseconds) / 1e6, text, facts.get("DEVICE", "").lstrip("+"))

    @property
    def trouble(self) -> bool:
        """Whether it tells of trouble: an error of the kernel, or a warning with a stack trace."""
        return self.facility == 0 and (self.level <= ERROR or _TROUBLE.search(self.text) is not None)

    def __str__(self) -> str:
        return f"[{self.time:12.6f}] {self.text}"


class KernelLog(Closing):
    """What the kernel logs from now on. A context manager.

    Thread safety: one thread at a time.

    Args:
        from_start: Begin with what is in the kernel's buffer already.

    Raises:
        OSError: ``/dev/kmsg`` is not there or may not be read: it takes root, or ``kernel.dmesg_restrict=0``.
    """

    def __init__(self, *, from_start: bool = False) -> None:
        self._fd: int | None = os.open(PATH, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._next: int | None = None
        self.lost = 0
        """How many records the kernel has overwritten before they were read here."""
        if not from_start:
            os.lseek(self._fd, 0, os.SEEK_END)

    def read(self) -> list[LogLine]:
        """What has been logged since the last call, the oldest first."""
        lines: list[LogLine] = []
        while self._fd is not None:
            try:
                record = os.read(self._fd, _RECORD)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # overwritten; the kernel goes on with the oldest that is left, and the number tells
            line = LogLine.parse(record.decode(errors="replace"))
            if self._next is not None:
                self.lost += line.sequence - self._next
            self._next = line.sequence + 1
            lines.append(line)
        return lines

    def close(self) -> None:
        """Stop reading. Does nothing the second time."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def troubles(lines: Iterable[LogLine]) -> list[tuple[LogLine, ...]]:
    """The trouble that lines tell of, each with all that belongs to it.

    A warning's stack trace is one with its head line, whatever the lines' levels: they lie between the kernel's own
    marks, or are the indented lines of a trace without marks. What another processor prints in between is taken along.
    """
    found: list[tuple[LogLine, ...]] = []
    kernel = [line for line in lines if line.facility == 0]
    at = 0
    while at < len(kernel):
        text = kernel[at].text
        if _CUT in text:
            end = next((i for i in range(at, len(kernel)) if _END in kernel[i].text), len(kernel) - 1)
        elif _BEFORE_TRACE.search(text) or _TRACE in text:
            trace = next((i for i in range(at, min(at + 5, len(kernel))) if _TRACE in kernel[i].text), None)
            if trace is None:
                if kernel[at].trouble:
                    found.append((kernel[at],))
                at += 1
                continue
            end = _end_of_trace(kernel, trace)
        else:
            if kernel[at].trouble:
                found.append((kernel[at],))
            at += 1
            continue
        found.append(tuple(kernel[at : end + 1]))
        at = end + 1
    return found


def _end_of_trace(lines: list[LogLine], at: int) -> int:
    """The last line of the trace whose head is at an index."""
    rest = range(at + 1, len(lines))
    if rest and lines[rest[0]].text.strip() in ("<TASK>", "<IRQ>"):
        # With the registers, which are not indented; an interrupt's part is followed by that of the task.
        return next((i for i in rest if lines[i].text.strip() == "</TASK>"), rest[-1])
    return max(itertools.takewhile(lambda i: lines[i].text.startswith(" "), rest), default=at)


class UnexpectedKernelMessageError(AssertionError):
    """The kernel has logged trouble that the test did not expect, or not what it had to.

    Attributes:
        troubles: The unexpected trouble, line by line.
        missing: The patterns of required messages that did not come.
    """

    def __init__(self, found: list[tuple[LogLine, ...]], missing: list[str]) -> None:
        super().__init__(found, missing)
        self.troubles = found
        self.missing = missing

    def __str__(self) -> str:
        parts = []
        if self.troubles:
            parts.append("unexpected kernel messages (dmesg.expect(regex) allows them):")
            parts += [f"  {line}" for trouble in self.troubles for line in trouble]
        parts += [f"the kernel did not log what was required: {pattern!r}" for pattern in self.missing]
        return "\n".join(parts)


class Dmesg:
    """The kernel's log during a test: the fixture ``dmesg``, which calls `check` at the test's end.

    Args:
        log: Where to read from; one of its own unless given.
    """

    def __init__(self, log: KernelLog | None = None) -> None:
        self._log = KernelLog() if log is None else log
        self._expected: list[tuple[re.Pattern[str], bool]] = []
        self._lines: list[LogLine] = []

    def expect(self, pattern: str | re.Pattern[str], *, required: bool = False) -> None:
        """Let the kernel log trouble that a pattern is found in; of a stack trace, in any of its lines.

        Args:
            pattern: A regular expression, searched for.
            required: The test fails where nothing matches. Not for what the kernel may drop: many messages, those of
                DMA faults among them, are limited in rate.
        """
        self._expected.append((re.compile(pattern), required))

    @property
    def lines(self) -> tuple[LogLine, ...]:
        """Everything logged so far, by the kernel or not."""
        self._lines += self._log.read()
        return tuple(self._lines)

    @property
    def lost(self) -> int:
        """How many records were overwritten before they were read."""
        return self._log.lost

    def unexpected(self) -> list[tuple[LogLine, ...]]:
        """The trouble so far that no pattern fits."""
        patterns = [pattern for pattern, _ in self._expected]
        return [
            trouble
            for trouble in troubles(self.lines)
            if not any(pattern.search(line.text) for pattern in patterns for line in trouble)
        ]

    def check(self, *, grace: float = 0.02) -> None:
        """Raise what the log says against the test.

        Args:
            grace: Seconds to wait first: an interrupt may still be on its way to the processor that logs it.

        Raises:
            UnexpectedKernelMessageError: There is unexpected trouble, or a required message is missing.
        """
        time.sleep(grace)
        found = self.unexpected()
        missing = [
            pattern.pattern
            for pattern, required in self._expected
            if required and not any(pattern.search(line.text) for line in self._lines)
        ]
        if found or missing:
            raise UnexpectedKernelMessageError(found, missing)

    def close(self) -> None:
        """Stop reading."""
        self._log.close()
