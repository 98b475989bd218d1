"""Tracebacks of tests that end at the user's line, not in this package, where the user's line is what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType

import pytest


def hide_own_frames(error: BaseException) -> None:
    """Have pytest hide this package's frames in the traceback of an error, except with ``--full-trace``.

    Args:
        error: The error, which others may have led to.
    """
    for frame in _frames(error):
        if _is_own(frame.f_globals.get("__name__")):
            # A name that pytest looks up in a frame, and then in its module.
            frame.f_globals["__tracebackhide__"] = _hidden


def _hidden(info: pytest.ExceptionInfo[BaseException] | None) -> bool:
    """Whether it is what this package raises on purpose: for wrong arguments, or an error, or a check, of its own.

    Anything else from it is a defect.
    """
    return info is not None and (isinstance(info.value, TypeError | ValueError) or _is_own(type(info.value).__module__))


def _is_own(module: object) -> bool:
    return str(module).startswith("pyiommufd.")


def _frames(error: BaseException | None) -> Iterator[FrameType]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        trace = error.__traceback__
        while trace is not None:
            yield trace.tb_frame
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
