"""What pages quote of the code is still there: messages of errors, modules, tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
VALUE = "\0"  # stands for what a message has at its time


def messages() -> Iterator[str]:
    """All texts of the code, with VALUE for each value that is put in."""
    for folder in ("provision", "mlaas4hep"):
        for module in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_quoted_messages_are_those_of_the_code() -> None:
    text = "\n".join(messages())
    quoted = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 50
    gone = []
    for message in quoted:
        words = re.split(r"((?:USER@HOST|\b[A-Z]{3,}\b))", message)
        pattern = "".join(
            rf"(?:{re.escape(word)}|(?:{VALUE}[^\w\n]?)+)" if number % 2 else re.escape(word)
            for number, word in enumerate(words)
        )
        if not re.search(pattern, text):
            gone.append(message)
    assert not gone


def test_modules_and_tests_that_the_threats_name_are_there() -> None:
    page = (DOCS / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:provision|mlaas4hep|tests)/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 40
    for path, test in named:
        assert (
            f"def {test}(" in (REPOSITORY / path).read_text(encoding="utf-8") if test else (REPOSITORY / path).exists()
        )
