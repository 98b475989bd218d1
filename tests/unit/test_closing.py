"""Steps that all have to be taken."""

from __future__ import annotations

import pytest

from pyiommufd.closing import call_each


def test_each_is_called_also_after_one_has_raised() -> None:
    called: list[str] = []

    def fail(name: str) -> None:
        called.append(name)
        raise OSError(name)

    with pytest.raises(OSError, match="second") as raised:
        call_each(
            iter(
                [lambda: called.append("a"), lambda: fail("first"), lambda: fail("second"), lambda: called.append("b")]
            )
        )
    assert called == ["a", "first", "second", "b"]
    assert str(raised.value.__context__) == "first"
