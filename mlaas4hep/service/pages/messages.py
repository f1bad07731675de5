"""Languages of the pages: English, which is in the templates, and translations by sentence in `messages/`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import cache
from importlib import resources

LANGUAGES = {"en": "English", "it": "Italiano"}
_LONGEST_HEADER = 500


@cache
def catalogue(language: str) -> dict[str, str]:
    """English sentence -> sentence in a language; empty for English."""
    if language == "en":
        return {}
    file = resources.files(__package__).joinpath("messages", f"{language}.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def translator(language: str) -> Callable[..., str]:
    """What gives sentences in a language; their `{names}` are filled in."""
    known = catalogue(language)

    def translate(text: str, **values: object) -> str:
        return known.get(text, text).format(**values) if values else known.get(text, text)

    return translate


def chosen(wanted: str, accepted: str) -> str:
    """The language that somebody has chosen, or else the first known one of an `Accept-Language` header."""
    if wanted in LANGUAGES:
        return wanted
    weighted = []
    for place, item in enumerate(accepted[:_LONGEST_HEADER].split(",")):
        tag, _, weight = item.partition(";q=")
        try:
            weighted.append((-float(weight or 1), place, tag.strip().partition("-")[0].lower()))
        except ValueError:
            continue
    return next((tag for _, _, tag in sorted(weighted) if tag in LANGUAGES), "en")
