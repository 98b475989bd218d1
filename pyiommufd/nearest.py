"""What somebody may have meant by a name that is not there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_MOST = 3
_ALIKE = 0.65


def did_you_mean(word: str, names: Iterable[str] | Mapping[str, str]) -> str:
    """A sentence part with the names that are nearest to a word, as ``; did you mean A or B?``; empty if none is near.

    Args:
        word: What was given.
        names: What there is; or, by how it may be written, what it is called.
    """
    from difflib import get_close_matches  # here: it takes longer to import than most commands to find their names

    called = names if isinstance(names, Mapping) else {name: name for name in names}
    by_key = {key.lower(): name for key, name in called.items()}
    low = word.lower()
    keys = [low] if low in by_key else get_close_matches(low, by_key, n=2 * _MOST, cutoff=_ALIKE)
    found = list(dict.fromkeys(by_key[key] for key in keys))[:_MOST]
    if not found:
        return ""
    return f"; did you mean {' or '.join([', '.join(found[:-1]), found[-1]] if len(found) > 1 else found)}?"
