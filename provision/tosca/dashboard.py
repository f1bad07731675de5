"""The files that the orchestrator's dashboard reads beside a template, as its present code takes them.

Source: infn-datacloud/orchestrator-dashboard, its form of inputs and its schema of the catalogue.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

CHOICES = ("select", "radio")
"""Fields whose constraints are pairs of value and label."""

FILLED = ("email", "ldap_user", "random_password", "ssh_user", "userinfo", "uuidgen")
"""Fields that the dashboard fills by itself."""

_ANY = ("combined", "dependent_definition", "hidden", "ldap_user")
_ONE = ("dependent_select", "radio", "select")
FIELDS = {
    "string": (*_ANY, *_ONE, "email", "hostname", "multiselect", "password", "random_password", "ssh_pub_key_type",
               "text", "textarea", "toggle", "userinfo", "uuidgen"),
    "integer": (*_ANY, *_ONE, "integer"),
    "float": (*_ANY, *_ONE, "float"),
    "boolean": (*_ANY, *_ONE, "boolean", "toggle"),
    "scalar-unit.size": (*_ANY, *_ONE, "scalar-unit.size"),
    "version": (*_ANY, *_ONE, "text"),
    "list": (*_ANY, "list", "multiselect", "ssh_user"),
    "map": (*_ANY, "map"),
}  # fmt: skip
"""Which fields can fill an input of each TOSCA type."""

FieldType = Literal[
    "boolean", "combined", "dependent_definition", "dependent_select", "email", "float", "hidden", "hostname",
    "integer", "ldap_user", "list", "map", "multiselect", "password", "radio", "random_password", "scalar-unit.size",
    "select", "ssh_pub_key_type", "ssh_user", "text", "textarea", "toggle", "userinfo", "uuidgen",
]  # fmt: skip


def _uri(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*:[^\s]+", value):
        raise ValueError(f"{value!r} is no URI")
    return value


Uri = Annotated[str, AfterValidator(_uri)]


class _Closed(BaseModel):
    """A mapping with these keys and no others, whose values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class InputField(_Closed):
    """One field of the form."""

    display_name: str
    type: FieldType
    tab: str
    description: str = ""
    default: Any = None
    constraints: list[Any] = []
    entry_schema: dict[str, Any] = {}
    required: bool = False
    required_ports: dict[str, dict[str, Any]] = {}
    placeholder: str = ""
    hidden: bool = False
    updatable: bool = False
    show_separator: bool = False
    info_box: str = ""
    warning: str = ""
    attribute: str = ""
    dependent_inputs: Any = None
    extra_specs: dict[str, Any] = {}
    format: dict[str, Any] = {}
    function: str = ""
    function_params: str = ""
    group_overrides: dict[str, Any] = {}
    inputs: dict[str, Any] = {}
    options: Any = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        pairs = all(isinstance(c, dict) and set(c) == {"value", "label"} for c in self.constraints)
        if self.type in CHOICES and not (self.constraints and pairs):
            raise ValueError(f"the constraints of a {self.type} are a list of {{value, label}}")
        if self.type in ("list", "map") and "type" not in self.entry_schema:
            raise ValueError(f"a {self.type} needs entry_schema with a type")
        return self


class Form(_Closed):
    """`<template>.parameters.yml`."""

    inputs: dict[str, InputField]
    tabs: Annotated[list[str], Field(min_length=1)]
    outputs: dict[str, dict[str, Any]] = {}


class Visibility(_Closed):
    """Who sees a service: everybody, or groups."""

    type: str
    groups: list[str] | None = None
    groups_regex: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.type != "public" and (self.groups is None) == (self.groups_regex is None):
            raise ValueError("what is not public has groups or groups_regex")
        return self


class Shown(_Closed):
    """What is shown of a template."""

    display_name: str
    description: str = ""
    icon: Uri = ""
    visibility: Visibility | None = None
    require_ssh_key: bool = True
    template_type: str = ""
    template_name: str = ""
    template_version: str = ""
    target_provider_type: str = ""


class Metadata(_Closed):
    """`<template>.metadata.yml`."""

    metadata: Shown


class ServiceShown(_Closed):
    """What the catalogue shows of a service."""

    display_name: str
    bookmark_id: str
    guide_url: str
    icon: Uri
    visibility: Visibility


class ServiceTemplate(_Closed):
    """One way to deploy a service."""

    name: str
    option: str = ""
    description: str = ""


class Service(_Closed):
    """One entry of the catalogue."""

    description: str
    metadata: ServiceShown
    templates: list[ServiceTemplate]

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if len(self.templates) > 1 and not all(template.option for template in self.templates):
            raise ValueError("several templates of a service each need an option")
        return self


class Catalogue(_Closed):
    """`metadata.yml`."""

    services: Annotated[list[Service], Field(min_length=1)]
    version: str = ""


def known_keys(model: type[BaseModel]) -> set[str]:
    """All keys that a file of this form can have."""
    models = {Form: (InputField,), Metadata: (Shown, Visibility)}.get(
        model, (Service, ServiceShown, ServiceTemplate, Visibility)
    )
    return {key for one in (model, *models) for key in one.model_fields}
