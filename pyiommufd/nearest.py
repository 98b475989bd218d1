"""What somebody may have meant by a name that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_MOST = 3
_ADDRESS = re.compile(r"[0-9a-f]+(?:[:.][0-9a-f]+)+")
_BETWEEN_WORDS = re.compile(r"[\W_]+")
_LEAST_BEGINNING = 3


def did_you_mean(word: str, names: Iterable[str] | Mapping[str, str]) -> str:
    """A sentence part with the names that are nearest to a word, as ``; did you mean A or B?``; empty if none is near.

    Near are, of addresses, those of the same numbers, or of one number that differs a little; of other names, those
    that hold each word that was given, or one with a letter in three wrong.

    Args:
        word: What was given.
        names: What there is; or, by how it may be written, what it is called.
    """
    called = names if isinstance(names, Mapping) else {name: name for name in names}
    costs: dict[str, int] = {}
    for key, name in called.items():
        cost = _cost(word.lower(), key.lower())
        if cost is not None:
            costs[name] = min(cost, costs.get(name, cost))
    least = min(costs.values(), default=0)
    found = [name for name, cost in costs.items() if cost == least][:_MOST]
    if not found:
        return ""
    return f"; did you mean {' or '.join([', '.join(found[:-1]), found[-1]] if len(found) > 1 else found)}?"


def _cost(given: str, name: str) -> int | None:
    """How far a name is from what was given; None: too far."""
    addresses = [_ADDRESS.fullmatch(text) is not None for text in (given, name)]
    if any(addresses):
        return _between_addresses(given, name) if all(addresses) else None
    words, of_name = ([each for each in _BETWEEN_WORDS.split(text) if each] for text in (given, name))
    whole = _between_words("_".join(words), "_".join(of_name))
    by_word = [
        min((cost for other in of_name if (cost := _between_words(one, other)) is not None), default=None)
        for one in words
    ]
    found = [cost for cost in by_word if cost is not None]
    if not words or len(found) < len(words):
        return whole
    return sum(found) if whole is None else min(whole, sum(found))


def _between_addresses(given_text: str, name_text: str) -> int | None:
    given, name = ([int(each, 16) for each in re.split("[:.]", text)] for text in (given_text, name_text))
    if len(given) > len(name):
        return None
    if "." not in given_text and given in (name[: len(given)], name[1 : len(given) + 1]):
        return 0  # without the function, with the domain or not
    if sorted(filter(None, given)) == sorted(filter(None, name)):
        return 2
    from_function = zip(given[::-1], name[::-1], strict=False)
    wrong = [(at, one, other) for at, (one, other) in enumerate(from_function) if one != other]
    if len(wrong) != 1 or len(name) - len(given) > 1:
        return None
    at, one, other = wrong[0]
    if at in (0, 3):  # the function, or the domain
        return 1
    return 2 if one >> 4 == other >> 4 and abs(one - other) == 1 else None


def _between_words(given: str, name: str) -> int | None:
    if given == name:
        return 0
    if len(given) >= _LEAST_BEGINNING and name.startswith(given):
        return 1
    most = len(given) // 3
    edits = _edits(given, name) if abs(len(given) - len(name)) <= most else most + 1
    return edits if edits <= most else None


def _edits(given: str, name: str) -> int:
    """How many letters are wrong, missing, too many, or exchanged with the next.

    The ratio of difflib does not tell these from other words: it is the same for sdb and sda as for EFOO and ELOOP.
    """
    before: list[int] = []
    row = list(range(len(name) + 1))
    for i, one in enumerate(given):
        below = [i + 1]
        for j, other in enumerate(name):
            edits = min(row[j + 1] + 1, below[j] + 1, row[j] + (one != other))
            if i and j and one == name[j - 1] and given[i - 1] == other:
                edits = min(edits, before[j - 1] + 1)
            below.append(edits)
        before, row = row, below
    return row[-1]
