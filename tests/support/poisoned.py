"""Structured output that no engine can serve: what does not compile, and what allows no output."""

from typing import Any

POISONED: list[dict[str, Any]] = [
    {"regex": "a**"},
    {"regex": "(?=a)b"},
    {"regex": "("},
    {"regex": "\x00"},
    {"grammar": "root ::= root"},
    {"grammar": "root ::= a\na ::= root"},
    {"grammar": "root ::= "},
    {"json": "{"},
    {"json": {"type": 7}},
    {"json": {"$ref": "#"}},
    {"json": {"$ref": "#/nowhere"}},
    {"structural_tag": "{}"},
    {"choice": []},
]
