"""What `penstock skill init` writes: each is a skill that passes `penstock skill check`."""

from __future__ import annotations

import json
from typing import Any

_HEAD = """\
name = "{name}"
version = "1.0.0"
category = "utility"            # communication, automation, analysis, creative, utility, integration
description = "{description}"
kind = "{kind}"
"""

_LICENCE = """
[licence]
kind = "usage"                  # free, perpetual, subscription (period = "day", "week", "month"), usage (pack = units)
token = "native"                # or a symbol, or a token's address
price = "0.001"                 # of a pack; commercial = "..." and enterprise = "..." are tiers of their own
pack = 100
# refund_window = 86400         # seconds in which a buyer may have its money back
# terms = "TERMS.md"
"""

_RUN = """
[run]                           # what it may use; there is no network unless hosts are named
seconds = 10
memory_mb = 128
# network = ["api.example.com"]
calls_per_minute = 60
units_per_call = 1
"""

_PYTHON = (
    _HEAD
    + _LICENCE
    + _RUN
    + """
[[example]]                     # run by `penstock skill check`, and shown to buyers
operation = "count"
input = {{ text = "to be or not to be" }}
output = {{ words = 6, different = 4 }}
"""
)

_HTTP = (
    _HEAD
    + _LICENCE
    + """
[run]
backend = "https://api.example.com"   # the paths of openapi.json stand on it
seconds = 10
"""
)

_WORKFLOW = (
    """\
output = {{ words = "$count.words" }}
"""
    + _LICENCE
    + """
[parts]                         # product = basis points of each sale: those that the steps use
1 = 2000

[[step]]
id = "count"
product = 1
operation = "count"
input = {{ text = "$input.text" }}
"""
)

_MODEL = (
    _HEAD
    + """\
model = "penstock-tiny"         # as offers name it
weights = "weights.gguf"        # the file, or its SHA-256 as 0x-hex
"""
    + _LICENCE.replace('kind = "usage" ', 'kind = "perpetual"')
    .replace("pack = 100\n", "")
    .replace("of a pack", "of all")
)

SKILL_PY = '''"""Each operation of openapi.json is a function here; the input's fields are its arguments."""


def count(text: str) -> dict[str, int]:
    words = text.lower().split()
    return {"words": len(words), "different": len(set(words))}
'''


def document(title: str, operation: str, given: dict[str, Any], answer: dict[str, Any], version: str) -> dict[str, Any]:
    """An OpenAPI document with one operation."""
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": {
            f"/{operation}": {
                "post": {
                    "operationId": operation,
                    "summary": "Count the words of a text",
                    "requestBody": {"required": True, "content": {"application/json": {"schema": given}}},
                    "responses": {
                        "200": {"description": "The counts", "content": {"application/json": {"schema": answer}}}
                    },
                }
            }
        },
    }


def files(name: str, kind: str) -> dict[str, str]:
    """By name. KeyError where there is no such kind."""
    head = {"name": name, "kind": kind, "description": "Counts the words of a text."}
    template = {"python": _PYTHON, "http": _HTTP, "workflow": _HEAD + _WORKFLOW, "model": _MODEL}[kind]
    found = {"skill.toml": template.format(**head)}
    if kind == "model":
        return found
    text = {"type": "string", "maxLength": 100_000}
    given = {"type": "object", "properties": {"text": text}, "required": ["text"], "additionalProperties": False}
    counts = {"words": {"type": "integer"}} | ({"different": {"type": "integer"}} if kind == "python" else {})
    answer = {"type": "object", "properties": counts, "required": list(counts), "additionalProperties": False}
    found["openapi.json"] = json.dumps(document(name, "count", given, answer, "1.0.0"), indent=2) + "\n"
    if kind == "python":
        found["skill.py"] = SKILL_PY
    return found
