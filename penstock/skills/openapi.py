"""A skill's operations, as its OpenAPI document describes them, and what goes in and out held against the schemas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from penstock.errors import ConfigError

if TYPE_CHECKING:
    from jsonschema.protocols import Validator
_METHODS = ("get", "put", "post", "delete", "patch")
_ROOT = "urn:skill"
MAX_OPERATIONS = 64


class Invalid(Exception):
    """A value does not follow its schema; the message says where."""


@dataclass(frozen=True)
class Operation:
    id: str
    method: str
    path: str
    path_parameters: tuple[str, ...]
    query_parameters: tuple[str, ...]
    has_body: bool
    summary: str
    _input: Validator
    _output: Validator

    def check_input(self, value: Any) -> None:
        """Invalid says what is wrong with it."""
        _check(self._input, value, "input")

    def check_output(self, value: Any) -> None:
        _check(self._output, value, "output")

    def request(self, value: Any) -> tuple[str, dict[str, str], Any]:
        """For an HTTP backend: the path with its query, and the body (None: none). The input was checked."""
        if not (self.path_parameters or self.query_parameters):
            return self.path, {}, value if self.has_body else None
        path = self.path
        for name in self.path_parameters:
            path = path.replace("{" + name + "}", quote(_text(value[name]), safe=""))
        query = {name: _text(value[name]) for name in self.query_parameters if name in value}
        return path, query, value.get("body")


@dataclass(frozen=True)
class Interface:
    title: str
    operations: Mapping[str, Operation]

    def operation(self, name: str) -> Operation:
        """ConfigError where there is none; the empty name is the only one there is."""
        if not name and len(self.operations) == 1:
            return next(iter(self.operations.values()))
        if name not in self.operations:
            raise ConfigError(f"there is no operation {name!r}: there are {', '.join(self.operations)}")
        return self.operations[name]


def parse_interface(document: Mapping[str, Any], *, parameters: bool) -> Interface:
    """ConfigError where it is no valid OpenAPI document, or uses what a skill cannot have. Without `parameters` each
    operation is a POST whose JSON body is the input."""
    _require_local(document)
    version = document.get("openapi")
    if not isinstance(version, str) or not version.startswith(("3.0.", "3.1.")):
        raise ConfigError("the OpenAPI document must say openapi: 3.0.x or 3.1.x")
    # Imported late: half a second that most commands need not wait for.
    from openapi_spec_validator import validate
    from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

    try:
        validate(document)
    except OpenAPIValidationError as error:
        where = "/".join(map(str, getattr(error, "absolute_path", ()))) or "document"
        raise ConfigError(f"the OpenAPI document is not valid at {where}: {_short(str(error))}") from None
    except Exception as error:  # the validator's own troubles with what it was given
        raise ConfigError(f"the OpenAPI document cannot be read: {_short(repr(error))}") from None
    operations: dict[str, Operation] = {}
    for path, item in document.get("paths", {}).items():
        for method in _METHODS:
            if method in item:
                operation = _operation(document, version, path, method, item[method], item, parameters)
                operations[operation.id] = operation
    if not 0 < len(operations) <= MAX_OPERATIONS:
        raise ConfigError(f"the OpenAPI document must describe 1 to {MAX_OPERATIONS} operations")
    return Interface(document["info"]["title"], operations)


def _operation(
    document: Mapping[str, Any],
    version: str,
    path: str,
    method: str,
    body: dict[str, Any],
    item: dict[str, Any],
    parameters: bool,
) -> Operation:
    name = body.get("operationId", "")
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise ConfigError(f"{method.upper()} {path}: give it an operationId that is a name in Python, such as count")
    here = f"paths/{_pointer(path)}/{method}"
    given = [*item.get("parameters", []), *body.get("parameters", [])]
    if not parameters and (method != "post" or given):
        raise ConfigError(f"{name}: an operation of this kind is a POST without parameters; its body is the input")
    content = body.get("requestBody", {}).get("content", {})
    if content and "application/json" not in content:
        raise ConfigError(f"{name}: the request body must be application/json")
    schema: dict[str, Any]
    if content:
        schema = {"$ref": f"{_ROOT}#/{here}/requestBody/content/application~1json/schema"}
    else:
        schema = {"type": "object", "maxProperties": 0}
    places: dict[str, list[str]] = {"path": [], "query": []}
    if given:
        schema = _with_parameters(name, given, schema if content else None, places)
    answers = body.get("responses", {})
    good = answers.get("200") or answers.get("201") or {}
    output: dict[str, Any] = {}
    if "schema" in good.get("content", {}).get("application/json", {}):
        code = "200" if answers.get("200") else "201"
        output = {"$ref": f"{_ROOT}#/{here}/responses/{code}/content/application~1json/schema"}
    return Operation(
        name,
        method,
        path,
        tuple(places["path"]),
        tuple(places["query"]),
        bool(content),
        str(body.get("summary", "")),
        _validator(document, version, schema),
        _validator(document, version, output),
    )


def _with_parameters(
    name: str, given: list[dict[str, Any]], body: dict[str, Any] | None, places: dict[str, list[str]]
) -> dict[str, Any]:
    """The schema of an input that holds parameters by name, and the body as `body`."""
    properties: dict[str, Any] = {}
    required = []
    for parameter in given:
        if "$ref" in parameter or parameter.get("in") not in places or parameter.get("name") == "body":
            raise ConfigError(f"{name}: parameters must be written out, in path or query, and none is named body")
        places[parameter["in"]].append(parameter["name"])
        properties[parameter["name"]] = {"type": ["string", "number", "integer", "boolean"]} | parameter.get(
            "schema", {}
        )
        if parameter.get("required"):
            required.append(parameter["name"])
    if body is not None:
        properties["body"] = body
        required.append("body")
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _validator(document: Mapping[str, Any], version: str, schema: dict[str, Any]) -> Validator:
    from openapi_schema_validator import OAS30Validator, OAS31Validator
    from referencing import Registry
    from referencing.jsonschema import DRAFT202012

    registry: Registry[Any] = Registry().with_resource(_ROOT, DRAFT202012.create_resource(document))
    kind = OAS30Validator if version.startswith("3.0") else OAS31Validator
    validator: Validator = kind(schema, registry=registry)
    return validator


def _check(validator: Validator, value: Any, name: str) -> None:
    from jsonschema.exceptions import best_match

    try:
        error = best_match(validator.iter_errors(value))
    except RecursionError:
        raise Invalid(f"{name}: is nested too deeply") from None
    if error is not None:
        where = ".".join([name, *map(str, error.absolute_path)])
        raise Invalid(f"{where}: {_short(error.message)}")


def _require_local(value: Any) -> None:
    """No reference leads out of the document: nobody's file or server is read because of it."""
    for reference in _references(value):
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise ConfigError(f"the OpenAPI document refers to {reference!r}: put it into the document itself")


def _references(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            if name in ("$ref", "$dynamicRef", "$id", "$schema", "externalValue", "operationRef") and isinstance(
                one, str
            ):
                yield one
            yield from _references(one)
    elif isinstance(value, list):
        for one in value:
            yield from _references(one)


def _pointer(path: str) -> str:
    """As a segment of a JSON pointer in a URI."""
    return quote(path.replace("~", "~0").replace("/", "~1"), safe="~")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"
