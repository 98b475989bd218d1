"""Runs a signal handler, which may raise, before any chosen opcode of an operation."""

from __future__ import annotations

import dis
import functools
import itertools
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


class Interruption(BaseException):
    """What the signal handler raises."""


@functools.cache
def _never(code: CodeType) -> frozenset[int]:
    """The opcodes of a function before which no handler runs: those that begin or end a ``with``, or assign None.

    An exception there would leave a lock held for ever, or what a ``finally`` is about to drop. CPython handles signals
    at the end of a call, as if the call had raised what a handler raises; when a function begins; and when a loop does
    again. None of that comes right before these: a None that is assigned there counts as any other opcode.
    """
    found: set[int] = set()
    instructions = list(dis.get_instructions(code))
    begins = {one.argval for one in instructions if "BACKWARD" in one.opname}
    begins |= {after.offset for one, after in itertools.pairwise(instructions) if one.opname == "RESUME"}
    for number, each in enumerate(instructions):
        if each.opname == "BEFORE_WITH":
            found.add(instructions[number + 1].offset)
        if each.opname in ("STORE_FAST", "STORE_DEREF") and number:
            value = instructions[number - 1]
            if value.opname == "LOAD_CONST" and value.argval is None and value.offset not in begins:
                found.update((value.offset, each.offset))
        calls = [one for one in instructions[number : number + 5] if one.opname != "PRECALL"][:4]
        if [one.opname for one in calls] == ["LOAD_CONST"] * 3 + ["CALL"] and all(
            one.argval is None for one in calls[:3]
        ):
            found.update(range(instructions[max(number - 1, 0)].offset, calls[-1].offset + 1))
    return frozenset(found)


@functools.cache
def _is_there(file: str) -> bool:
    return (Path(__file__).parents[1] / file).exists()


def opcodes(
    operation: Callable[[], object],
    files: Collection[str],
    stop: int | None = None,
    handler: Callable[[], object] = lambda: None,
    *,
    raises: bool = True,
) -> tuple[int, str]:
    """Run an operation, up to one of its opcodes, where it is interrupted.

    Args:
        operation: What to run. What it raises itself is raised here, but for `Interruption`.
        files: The source files, or folders of them, whose opcodes count; relative to the project.
        stop: The number of the opcode, from 0 on; None: run to the end.
        handler: What the signal handler does before it raises.
        raises: Whether it does; otherwise the operation goes on.

    Returns:
        How many opcodes came before the end or the interruption, and where that was.

    Raises:
        FileNotFoundError: One of the files is not there, so none of its opcodes would count.
    """
    if missing := [file for file in files if not _is_there(file)]:
        raise FileNotFoundError(f"there is no {', '.join(missing)} whose opcodes could count")
    count, where = 0, "the end"

    def each(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count, where
        # Opcodes without a line propagate an exception (added by CPython). No handler runs before them, and what
        # a trace function raises there is never freed (3.11).
        line: int | None = frame.f_lineno
        if event == "opcode" and line is not None and frame.f_lasti not in _never(frame.f_code):
            if count == stop:
                where = f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
                sys.settrace(None)
                handler()
                if raises:
                    raise Interruption
            count += 1
        return each

    def trace(frame: FrameType, _event: str, _: Any) -> Any:
        code = frame.f_code
        if not any(file in code.co_filename for file in files):
            return None
        frame.f_trace_opcodes = True
        return each

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        operation()
    except Interruption:
        pass
    finally:
        sys.settrace(before)
    return count, where
