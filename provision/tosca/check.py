"""Whether a template, its types, its form and the values for it fit together: offline, each problem with its line."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import BaseModel, ValidationError

from provision.errors import UsageError
from provision.share import platform_play, share
from provision.tosca import dashboard
from provision.tosca.render import BASIC_TYPES, CATALOGUE, NODE_TYPE
from provision.tosca.source import Problem, Source, read_source

Way = tuple[Any, ...]

_FUNCTIONS = ("get_input", "get_property", "get_attribute", "get_operation_output", "get_nodes_of_type", "get_artifact")


class _Input(BaseModel):
    type: str


class _Node(BaseModel):
    type: str
    properties: dict[str, Any] = {}
    capabilities: dict[str, dict[str, dict[str, Any]]] = {}
    requirements: list[dict[str, Any]] = []
    interfaces: dict[str, dict[str, Any]] = {}


class _Topology(BaseModel):
    inputs: dict[str, _Input] = {}
    node_templates: dict[str, _Node] = {}
    outputs: dict[str, dict[str, Any]] = {}


class _Template(BaseModel):
    """What of a template has to be a mapping or a list: the parser crashes where it is not, and tells no line."""

    tosca_definitions_version: str
    metadata: dict[str, Any] = {}
    topology_template: _Topology


class _NodeType(BaseModel):
    derived_from: str
    properties: dict[str, dict[str, Any]] = {}
    artifacts: dict[str, dict[str, Any]] = {}
    interfaces: dict[str, dict[str, Any]] = {}


class _Types(BaseModel):
    """The same of a file of types."""

    data_types: dict[str, dict[str, Any]] = {}
    node_types: dict[str, _NodeType] = {}


def check(target: Path, values: Path | None = None) -> tuple[list[Path], list[Problem]]:
    """Check a template, or all templates of a folder that was rendered, and what belongs to them.

    `values` is a file with the values of the inputs for a deployment. Returns the templates and what is wrong.
    Raises UsageError when there is no template.
    """
    folder = target if target.is_dir() else target.parent
    templates = sorted(_templates(target)) if target.is_dir() else [target]
    if not templates:
        raise UsageError(f"There is no template in {target}.", "A template is a YAML file with a topology_template.")
    problems: list[Problem] = []
    for path in templates:
        problems += _check_template(read_source(path), folder, values)
    if target.is_dir() and (folder / CATALOGUE).is_file():
        problems += _check_catalogue(read_source(folder / CATALOGUE), templates)
    return templates, list(dict.fromkeys(problems))


def _templates(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.suffix in (".yaml", ".yml") and path.is_file():
            source = read_source(path)
            side = path.stem.endswith((".parameters", ".metadata")) or path.name == CATALOGUE
            if (source.data is None and not side) or "topology_template" in (source.data or {}):
                yield path


def _check_template(template: Source, folder: Path, values: Path | None) -> list[Problem]:
    if template.data is None:
        return template.problems
    problems = list(template.problems)
    imported, wrong = _imports(template, folder)
    problems += wrong
    problems += [problem for source in imported.values() for problem in source.problems]
    if problems:
        return problems
    if wrong := [*_model(template, _Template), *(p for source in imported.values() for p in _model(source, _Types))]:
        return wrong
    inputs = template.data["topology_template"].get("inputs", {})
    problems += _parse(template, imported)
    problems += _roles(imported)
    used = {entry for way, entry in template.ways() if way and way[-1] == "get_input" and isinstance(entry, str)}
    problems += [
        template.problem(_input(name), f"the input {name!r} is used nowhere") for name in inputs if name not in used
    ]
    definitions = {
        name: entry for source in imported.values() for name, entry in source.data.get("data_types", {}).items()
    }
    for name, entry in inputs.items():
        if "default" in entry and (text := _misfit(entry, entry["default"], definitions)):
            problems.append(template.problem((*_input(name), "default"), f"the default of {name!r}: {text}"))
    problems += _side_files(template, inputs, definitions)
    return problems + (_check_values(read_source(values), inputs, definitions) if values else [])


def _input(name: str) -> Way:
    return ("topology_template", "inputs", name)


# --- types -----------------------------------------------------------------------------------------------------------


def _imports(template: Source, folder: Path) -> tuple[dict[str, Source], list[Problem]]:
    """The files behind all imports, of imported files too, by their addresses; and imports that have none here."""
    found: dict[str, Source] = {}
    problems: list[Problem] = []
    waiting = [template]
    while waiting:
        source = waiting.pop()
        entries = (source.data or {}).get("imports", [])
        if not isinstance(entries, list):
            problems.append(source.problem(("imports",), "imports are a list"))
            continue
        for number, entry in enumerate(entries):
            address = next(iter(entry.values())) if isinstance(entry, dict) and len(entry) == 1 else entry
            if not isinstance(address, str):
                problems.append(source.problem(("imports", number), "an import is written NAME: ADDRESS"))
            elif address not in found:
                if path := _local(address, folder):
                    found[address] = read_source(path)
                    waiting.append(found[address])
                else:
                    text = f"no file in {folder} is what {address} imports"
                    problems.append(source.problem(("imports", number), text))
    return found, problems


def _local(address: str, folder: Path) -> Path | None:
    """The file of the folder whose path the address ends with; INFN-Cloud's basic types are the toolkit's."""
    parts = [part for part in unquote(urlsplit(address).path).split("/") if part]
    for start in range(len(parts)):
        path = folder.joinpath(*parts[start:])
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            return path
    return share() / "templates/tosca/basic_types.yaml" if address.endswith(BASIC_TYPES) else None


def _parse(template: Source, imported: dict[str, Source]) -> list[Problem]:
    """What tosca-parser finds, which knows no lines, and what it fails on or passes over."""
    from toscaparser.common.exception import ExceptionCollector
    from toscaparser.common.exception import ValidationError as ParserError
    from toscaparser.tosca_template import ToscaTemplate

    if fatal := [*_functions(template), *_node_types(template, imported)]:
        return fatal
    local = {address: str(source.path) for address, source in imported.items()}
    try:
        ToscaTemplate(yaml_dict_tpl=copy.deepcopy(template.data), local_defs=local)
    except ParserError:
        reports = [_words(error) for error in ExceptionCollector.getExceptions()]
        sources = [template, *imported.values()]
        return [max((source.about(text) for source in sources), key=lambda found: found[0])[1] for text in reports]
    except Exception as error:  # there are templates on which it crashes
        return [template.problem((), f"tosca-parser fails with {type(error).__name__}: {_words(error)}")]
    finally:
        ExceptionCollector.stop()
    return []


def _words(error: Exception) -> str:
    """The message on one line; a KeyError's own text would be in quotes."""
    return " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())


def _functions(template: Source) -> Iterator[Problem]:
    """Functions that there are none of, which pass for text, and an index in get_property, which crashes the parser."""
    for way, entry in template.ways():
        if way[:1] != ("topology_template",) or way[1:2] == ("inputs",):
            continue
        name = str(way[-1])
        if name.startswith("get_") and name not in _FUNCTIONS:
            yield template.problem(way, f"there is no function {name!r}{_near(name, _FUNCTIONS)}")
        if name == "get_property" and isinstance(entry, list) and isinstance(entry[-1], int):
            yield template.problem(way, "get_property cannot take an index: tosca-parser crashes on it")


def _node_types(template: Source, imported: dict[str, Source]) -> Iterator[Problem]:
    """Types of nodes that are defined nowhere: the parser crashes on them."""
    from toscaparser.elements.entity_type import EntityType

    known = set(EntityType.TOSCA_DEF)
    for source in (template, *imported.values()):
        known |= set(source.data.get("node_types", {}))
    for way, entry in template.ways():
        if way[:2] == ("topology_template", "node_templates") and way[3:] == ("type",) and entry not in known:
            yield template.problem(way, f"there is no type {entry!r}{_near(entry, known)}")


def _roles(imported: dict[str, Source]) -> Iterator[Problem]:
    """Inputs of our type's operations that no role and no playbook takes."""
    known = _variables()
    for source in imported.values():
        for way, _ in source.ways():
            if way[:2] == ("node_types", NODE_TYPE) and way[-2:-1] == ("inputs",) and way[-1] not in known:
                yield source.problem(way, f"no role takes {way[-1]!r}{_near(way[-1], known)}")


@cache
def _variables() -> frozenset[str]:
    """The variables of the playbook and its roles."""
    play = platform_play()
    known = set(play["vars"])
    for path in (share() / "roles").glob("*/meta/argument_specs.yml"):
        known |= set(yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"]["main"]["options"])
    return frozenset(known)


# --- values ----------------------------------------------------------------------------------------------------------


def _misfit(schema: dict[str, Any], value: Any, definitions: dict[str, Any]) -> str:
    """Why the value does not fit the definition of an input, or an empty text."""
    from toscaparser.common.exception import TOSCAException
    from toscaparser.dataentity import DataEntity
    from toscaparser.elements.constraints import Schema

    try:
        definition = Schema("", schema)
        DataEntity.validate_datatype(definition.type, value, definition.entry_schema, definitions)
        for constraint in definition.constraints:
            constraint.validate(value)
    except (TOSCAException, ValueError, KeyError, TypeError, AttributeError) as error:
        return _words(error)
    return ""


def _check_values(values: Source, inputs: dict[str, Any], definitions: dict[str, Any]) -> list[Problem]:
    if values.data is None:
        return values.problems
    problems = list(values.problems)
    for name, value in values.data.items():
        if name not in inputs:
            problems.append(values.problem((name,), f"there is no input {name!r}{_near(name, inputs)}"))
        elif text := _misfit(inputs[name], value, definitions):
            problems.append(values.problem((name,), f"{name}: {text}"))
    lacking = [name for name, entry in inputs.items() if _needed(entry) and name not in values.data]
    return problems + [values.problem((), f"the input {name!r} has no value and no default") for name in lacking]


def check_values(values: Path, document: dict[str, Any], before: dict[str, Any]) -> list[Problem]:
    """Check a file with new values for a template of the toolkit that was in order.

    `before` has the values that hold where the file has none.
    """
    inputs = document["topology_template"]["inputs"]
    known = {name: {**entry, "required": False} if name in before else entry for name, entry in inputs.items()}
    types = read_source(share() / "templates/tosca/basic_types.yaml").data["data_types"]
    return _check_values(read_source(values), known, types)


def _needed(entry: dict[str, Any]) -> bool:
    return entry.get("required", True) is True and "default" not in entry


def _near(name: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(name), map(str, known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# --- the dashboard's files -------------------------------------------------------------------------------------------


def _side_files(template: Source, inputs: dict[str, Any], definitions: dict[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    for kind, model in (("parameters", dashboard.Form), ("metadata", dashboard.Metadata)):
        path = template.path.with_suffix(f".{kind}.yml")
        if not path.is_file():
            problems.append(Problem(template.path, 1, f"{path.name} is not beside it"))
            continue
        source = read_source(path)
        wrong = source.problems or _model(source, model)
        problems += wrong
        if kind == "parameters" and not wrong:
            problems += _check_form(source, template, inputs, definitions)
    return problems


def _model(source: Source, model: type[BaseModel]) -> list[Problem]:
    """What the form of a file forbids."""
    try:
        model.model_validate(source.data)
    except ValidationError as error:
        return [_wrong(source, problem, model) for problem in error.errors()]
    return []


def _wrong(source: Source, problem: Any, model: type[BaseModel]) -> Problem:
    way, words = tuple(problem["loc"]), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return source.problem(way, f"there is no key {way[-1]!r}{_near(way[-1], dashboard.known_keys(model))}")
    if problem["type"] == "missing":
        return source.problem(way[:-1], f"it lacks {way[-1]!r}")
    return source.problem(way, f"{way[-1] if way else 'file'}: {words}")


def _check_form(
    form: Source, template: Source, inputs: dict[str, Any], definitions: dict[str, Any]
) -> Iterator[Problem]:
    """The form against the template's inputs, and the other way round."""
    fields = form.data["inputs"]
    for name in inputs:
        if name not in fields:
            yield template.problem(_input(name), f"the input {name!r} is not in {form.path.name}{_near(name, fields)}")
    for name, entry in fields.items():
        way = ("inputs", name)
        if name not in inputs:
            yield form.problem(way, f"{template.path.name} has no input {name!r}{_near(name, inputs)}")
            continue
        kind, there = entry["type"], inputs[name].get("type", "string")
        if kind not in dashboard.FIELDS.get(there, ()):
            yield form.problem((*way, "type"), f"{name}: a field of type {kind} cannot fill an input of type {there}")
        if entry.get("tab") not in form.data.get("tabs", [None]):
            yield form.problem((*way, "tab"), f"{name}: there is no tab {entry.get('tab')!r}")
        if _needed(inputs[name]) and not entry.get("required") and kind not in dashboard.FILLED:
            yield form.problem(way, f"{name}: the input has no default, so the field has to be required")
        offered: list[tuple[Way, Any]] = [((*way, "default"), entry["default"])] if "default" in entry else []
        if kind in dashboard.CHOICES:
            choices = entry.get("constraints", [])
            offered += [((*way, "constraints", n, "value"), choice["value"]) for n, choice in enumerate(choices)]
            if "default" in entry and entry["default"] not in [choice["value"] for choice in choices]:
                yield form.problem((*way, "default"), f"{name}: the default is none of the choices")
        for where, value in offered:
            if text := _misfit(inputs[name], value, definitions):
                yield form.problem(where, f"{name}: {text}")


def _check_catalogue(catalogue: Source, templates: list[Path]) -> list[Problem]:
    if wrong := catalogue.problems or _model(catalogue, dashboard.Catalogue):
        return wrong
    problems, named = [], set()
    for number, service in enumerate(catalogue.data["services"]):
        for place, entry in enumerate(service["templates"]):
            named.add(entry["name"])
            if entry["name"] not in {path.name for path in templates}:
                way = ("services", number, "templates", place, "name")
                problems.append(catalogue.problem(way, f"there is no template {entry['name']}"))
    lacking = [path.name for path in templates if path.name not in named]
    return problems + [catalogue.problem((), f"no service has the template {name}") for name in lacking]
