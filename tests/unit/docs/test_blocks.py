"""Settings, rules and code that pages show are what the programs take."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from mlaas4hep.data.preprocessing import Preprocessing
from mlaas4hep.service.policy import Policy
from mlaas4hep.service.settings import Settings
from provision.usage import Prices
from tests.conftest import REPOSITORY

BLOCK = re.compile(r"^```(toml|json|yaml|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(kind, text, id=f"{page.stem}-{kind}{number}")
    for page in sorted((REPOSITORY / "docs").rglob("*.md"))
    for number, (kind, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
]
MODELS: tuple[type[BaseModel], ...] = (Settings, Policy, Prices)


@pytest.mark.parametrize(("kind", "text"), BLOCKS)
def test_what_a_page_shows_is_taken(kind: str, text: str) -> None:
    {"toml": settings, "json": rules, "yaml": yaml.safe_load, "python": code}[kind](text)


def settings(text: str) -> None:
    """A file of settings, or some tables of one, where those that it must have are left out."""
    data = tomllib.loads(text)
    model = next(model for model in MODELS if set(data) <= set(model.model_fields))
    if model is Settings:
        data = {"data": Path("/srv/data")} | data
        data["authentication"] = data.get("authentication") or {"token_file": "token"}
    model.model_validate(data)


def rules(text: str) -> None:
    """A preproc.json."""
    Preprocessing.from_json(json.loads(text), "the page")


def code(text: str) -> None:
    """A preproc.py."""
    names: dict[str, Any] = {}
    exec(compile(text, "the page", "exec"), names)  # the page's own
    record = {"nMuon": 2, "Muon_pt": [1.0, 2.0], "Muon_eta": [0.0, 0.0], "Muon_charge": [1, -1]}
    assert names["preprocessing"](record)["pz"] == [0.0, 0.0]
