"""Checks of a request's body that stop at the first wrong entry of a list or a mapping.

pydantic notes one error for each class that an entry may be of, and goes on: 2,000 wrong messages of the
Responses API, a body of 60 KB, made half a million errors, which took 2.6 GB. A client is told of one entry.
"""

from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

_LISTS = ("list", "set", "frozenset", "tuple")
_MOST_UNCHECKED = 100  # entries of a mapping that are checked together
_NO_SCHEMAS = frozenset({"default", "metadata", "serialization", "config"})


def stop_at_first_error(routes: Iterable[Any]) -> None:
    """Changes how FastAPI checks the bodies of these routes."""
    for route in routes:
        for field in route.dependant.body_params if hasattr(route, "dependant") else ():
            adapter: TypeAdapter[Any] = field._type_adapter
            adapter.validator = first_error_validator(adapter)


def first_error_validator(adapter: TypeAdapter[Any]) -> SchemaValidator:
    """Returns the same check, which notes the errors of one entry only."""
    # Not what pydantic has built for the classes inside: that notes all errors.
    return SchemaValidator(_stopping(adapter.core_schema), _use_prebuilt=False)


def _stopping(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(map(_stopping, schema))
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if not isinstance(kind, str):  # fields by their names
        return {name: _stopping(one) for name, one in schema.items()}
    changed = {key: one if key in _NO_SCHEMAS else _stopping(one) for key, one in schema.items()}
    if kind in _LISTS:
        return changed | {"fail_fast": True}
    if kind == "dict" and "values_schema" in schema:  # for which pydantic has no such setting
        return {
            "type": "function-wrap",
            "function": {"type": "no-info", "function": _check_entries},
            "schema": changed,
        }
    return changed


def _check_entries(value: Any, check: Any) -> Any:
    """Checks the entries of a large mapping one by one first, which raises at a wrong one."""
    if isinstance(value, dict) and len(value) > _MOST_UNCHECKED:
        for key, one in value.items():
            check({key: one})
    return check(value)
