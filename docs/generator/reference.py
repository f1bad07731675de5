"""The reference, made from the code: command lines, routes, settings, parameters, roles."""

from __future__ import annotations

import html
import inspect
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from docs.generator.commands import ROOTS, commands

_CHECKOUT = Path(__file__).parents[2]
_MADE = "Made from the code when the manual was built.\n"
_SETTINGS = """
data = "{folder}/data"
[authentication]
policy = "{folder}/policy.toml"
[[authentication.issuers]]
url = "https://iam.example.org/"
audiences = ["https://ml.example.org"]
[authentication.login]
client_id = "example"
public_url = "https://ml.example.org"
"""


def pages() -> dict[str, str]:
    """Path and text of each page."""
    made = {f"reference/{root}.md": _command_page(root) for root in ROOTS}
    made["reference/rest.md"] = _routes()
    made["reference/settings.md"] = _settings()
    made["reference/wishes.md"] = _wishes()
    made["reference/roles.md"] = _roles()
    return made


def _command_page(root: str) -> str:
    lines = [f"# The command `{root}`\n", _MADE]
    for command in commands(root):
        if command.words != (root,):
            lines.append(f"## {command.name}\n")
        lines.append(f"```\n{command.name} {command.usage}\n```\n")
        lines += [f"{_plain(paragraph)}\n" for paragraph in command.text.split("\n\n")]
        rows = [(_code(name), _plain(meaning)) for name, meaning in command.arguments + command.options]
        lines += [*_table(("argument or option", "meaning"), rows), ""]
    return "\n".join(lines)


def _routes() -> str:
    """All routes of a shared service, from the OpenAPI document and the inference server's own table."""
    document, inference = _service()
    lines = ["# Routes of the service\n", _MADE]
    lines.append("The service itself has the OpenAPI document at `/api/v1/openapi.json`.\n")
    by_tag: dict[str, list[tuple[str, str, str]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            roles = [role for needed in operation.get("security", []) for names in needed.values() for role in names]
            tag = operation.get("tags", ["others"])[0]
            text = operation.get("description") or operation.get("summary", "")
            row = (f"`{method.upper()} {path}`", _plain(" ".join(text.split())), ", ".join(roles))
            by_tag.setdefault(tag, []).append(row)
    for tag, rows in by_tag.items():
        lines += [f"## {tag[0].upper()}{tag[1:]}\n", *_table(("route", "what it does", "role that it needs"), rows), ""]
    lines.append("## Inference\n")
    lines.append("Also at the inference server's own address, which the web proxy sends them to.\n")
    shown = [
        (f"`{' '.join(sorted((route.methods or set()) - {'HEAD'}))} {route.path}`", _plain(_first(route.endpoint)))
        for route in inference.routes
    ]
    lines += [*_table(("route", "what it does"), shown), ""]
    return "\n".join(lines)


def _service() -> tuple[dict[str, Any], Any]:
    """The OpenAPI document of a shared service, and its inference server."""
    from mlaas4hep.service.authentication import authenticator, policy_source
    from mlaas4hep.service.serve import control_plane
    from mlaas4hep.service.settings import load_settings
    from mlaas4hep.serving.app import create_app

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "policy.toml").write_text("")
        file = folder / "service.toml"
        file.write_text(_SETTINGS.format(folder=folder))
        before = os.environ.get("MLAAS4HEP_CONFIG")
        os.environ["MLAAS4HEP_CONFIG"] = str(file)
        try:
            front: Any = control_plane()
        finally:
            del os.environ["MLAAS4HEP_CONFIG"]
            if before is not None:
                os.environ["MLAAS4HEP_CONFIG"] = before
        front.api.state.service.database.close()
        settings = load_settings(file)
        identify = authenticator(settings.authentication, policy_source(settings.authentication))
        return front.api.openapi(), create_app(folder / "repository", settings.serving, identify)


def _settings() -> str:
    """The service's TOML file."""
    from mlaas4hep.service.settings import Settings

    lines = ["# Settings of the service\n", _MADE, "The file is `/etc/mlaas4hep/service.toml`, or what `--config` or"]
    lines.append("`MLAAS4HEP_CONFIG` name. Unknown names are refused.")
    lines.append("[Authentication](../service/authentication.md) has the policy file.\n")
    for table, model in _models(Settings, ""):
        lines += [f"## {f'[{table}]' if table else 'At the top'}\n", *_fields(model), ""]
    return "\n".join(lines)


def _wishes() -> str:
    """Files that users write: specs of platforms, parameters of trainings."""
    from mlaas4hep.training.parameters import Parameters
    from provision.spec import PlatformSpec

    lines = ["# Spec files and parameters\n", _MADE, "## A spec file of a platform\n"]
    lines.append("YAML, for `provision create --spec FILE`; an option of the command wins over it.\n")
    lines += [f"{_plain(text)}\n" for text in (inspect.getdoc(PlatformSpec) or "").split("\n\n")]
    options = {p.name: p.help for p in ROOTS["provision"].commands["create"].params}
    meanings = {
        name: options.get(name) or options.get(name.removesuffix("s"), "") for name in PlatformSpec.model_fields
    }
    lines += [*_fields(PlatformSpec, meanings), "", "## `params.json`\n", *_fields(Parameters), ""]
    return "\n".join(lines)


def _models(model: type[BaseModel], table: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """A model and those of its fields, with the names of their TOML tables."""
    yield table, model
    for name, field in model.model_fields.items():
        for inner in _inner(field.annotation):
            yield from _models(inner, f"{table}.{name}".lstrip("."))


def _inner(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _inner(argument)


def _fields(model: type[BaseModel], meanings: dict[str, str] | None = None) -> list[str]:
    """A table of a model's fields, with the meanings of its docstring unless others are given."""
    meanings = meanings or _attributes(model)
    rows = []
    for name, field in model.model_fields.items():
        if isinstance(field.default_factory, type):
            default = ""
        elif field.default_factory is not None:
            default = "this computer's"
        elif field.default is PydanticUndefined:
            default = "has to be given"
        else:
            default = _code(_shown(field.default))
        rows.append((f"`{name}`", default, _plain(meanings.get(name, "a table, see below."))))
    return _table(("name", "default", "meaning"), rows)


def _shown(value: Any) -> str:
    if value is None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """The section `Attributes` of a docstring."""
    _, _, section = (inspect.getdoc(model) or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _roles() -> str:
    """The roles' `argument_specs`."""
    lines = ["# Roles and their variables\n", _MADE]
    for file in sorted(_CHECKOUT.glob("roles/*/meta/argument_specs.yml")):
        main = yaml.safe_load(file.read_text(encoding="utf-8"))["argument_specs"]["main"]
        lines += [f"## {file.parts[-3]}\n", f"{_plain(main['short_description'])}.\n"]
        lines.append(_plain(_joined(main.get("description", ""))) + "\n")
        rows = list(_options(main.get("options", {}), ""))
        lines += [*_table(("variable", "type", "default", "meaning"), rows), ""]
    return "\n".join(lines)


def _options(options: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, option in options.items():
        kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
        default = _code(str(option["default"])) if option.get("default") not in (None, "") else ""
        if option.get("required"):
            default = "has to be given"
        text = _joined(option["description"])
        if "choices" in option:
            text += f" One of {', '.join(map(str, option['choices']))}."
        yield f"`{prefix}{name}`", kind, default, _plain(text)
        yield from _options(option.get("options", {}), f"{prefix}{name}.")


def _joined(text: str | list[str]) -> str:
    """A text of `argument_specs`, with Ansible's marks for options, values and code as backquotes."""
    return re.sub(r"\b[OVC]\(([^)]*)\)", r"`\1`", " ".join(text if isinstance(text, list) else [text]))


def _first(function: Any) -> str:
    return (inspect.getdoc(function) or "").partition("\n\n")[0]


def _plain(text: str) -> str:
    """Words as they are, in a line of Markdown or a cell of a table; what stands between backquotes stays code."""
    pieces = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        piece if piece.startswith("`") else re.sub(r"([\\*_\[\]|#])", r"\\\1", html.escape(piece, quote=False))
        for piece in pieces
    )


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    if not rows:
        return []
    return [f"| {' | '.join(cells)} |" for cells in (heads, ("---",) * len(heads), *rows)]
