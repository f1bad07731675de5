"""Names that users type: near misses for wrong ones, and patterns that stand for several."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

_SHOWN = 3


def near_misses(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that look like `name`, best first; letter case does not count."""
    folded: dict[str, str] = {}
    for candidate in known:
        folded.setdefault(candidate.casefold(), candidate)
    close = difflib.get_close_matches(name.casefold(), folded, n=_SHOWN, cutoff=0.6)
    return [folded[match] for match in close]


def did_you_mean(name: str, known: Sequence[str], what: str) -> str:
    """A sentence that helps to mend a wrong name: the near misses, or else what there is.

    Args:
        name: what the user wrote.
        known: the names that exist.
        what: what they are, in the plural ("trees", "branches").
    """
    close = near_misses(name, known)
    if close:
        return f"Did you mean {listing(close)}?"
    if not known:
        return f"There are no {what}."
    return f"The {what} are {listing(sorted(known))}."


def listing(names: Sequence[str], shown: int = 8) -> str:
    """The names as running text, shortened to the first `shown` when there are more."""
    text = ", ".join(names[:shown])
    return f"{text} and {len(names) - shown} more" if len(names) > shown else text


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that equal `pattern`, or else match it as a shell pattern (`*`, `?`, `[abc]`); letter case counts."""
    names = list(names)
    if pattern in names:
        return [pattern]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def is_pattern(text: str) -> bool:
    """Whether the text has one of the characters `*`, `?` and `[` that make it a pattern."""
    return any(character in text for character in "*?[")
