"""Requests that a client might send by mistake or on purpose, made from an application's own OpenAPI.

A request starts as a valid one of its route; then any field at any depth becomes any JSON value. Routes that
have no valid body in `VALID` start from the smallest body that their schema allows, so that a new route is
covered on the day it is added.
"""

import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from llmserve.apiserver.auth.permissions import GENERATING_PATHS

Path = tuple[str | int, ...]

_USER = [{"role": "user", "content": "hello"}]
_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_ADAPTER = "dir:/adapters/any"  # FakeRouter has one there
VALID: Mapping[str, Sequence[dict[str, Any]]] = {
    "/v1/completions": (
        {"model": "tiny", "prompt": "hello", "max_tokens": 2, "stop": ["x"], "user": "u"},
        {"model": "tiny", "prompt": [3, 4, 5], "max_tokens": 2, "stream": True, "logit_bias": {"5": 1}},
        {"model": "tiny", "prompt": "a", "max_tokens": 2, "structured_outputs": {"regex": "a+"}},
        {"model": "tiny", "prompt": "a", "max_tokens": 2, "lora_path": _ADAPTER},
    ),
    "/v1/chat/completions": (
        {"model": "tiny", "messages": _USER, "max_tokens": 2, "stop": ["x"], "metadata": {"a": "b"}},
        {"model": "tiny", "messages": _USER, "max_tokens": 2, "stream": True, "priority": 1, "seed": 1},
        {"model": "tiny", "messages": _USER, "max_tokens": 2, "tools": [_TOOL], "tool_choice": "none"},
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
            "max_tokens": 2,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"a": {}}}},
            },
        },
        {
            "model": "tiny",
            "max_tokens": 2,
            "messages": [
                *_USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "1"},
            ],
        },
    ),
    "/v1/responses": (
        {"model": "tiny", "input": "hello", "max_output_tokens": 2},
        {"model": "tiny", "input": _USER, "max_output_tokens": 2, "stream": True, "instructions": "be"},
        {
            "model": "tiny",
            "input": "a",
            "max_output_tokens": 2,
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        },
    ),
    "/v1/messages": (
        {"model": "tiny", "messages": _USER, "max_tokens": 2, "system": "be", "metadata": {"user_id": "u"}},
        {"model": "tiny", "messages": _USER, "max_tokens": 2, "stream": True, "stop_sequences": ["x"]},
        {
            "model": "tiny",
            "messages": _USER,
            "max_tokens": 2,
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "none"},
        },
    ),
    "/v1/messages/count_tokens": ({"model": "tiny", "messages": _USER},),
    "/generative_scoring": ({"model": "tiny", "query": "a", "items": ["a"], "label_token_ids": [5, 6]},),
    "/tokenize": ({"model": "tiny", "prompt": "hello"}, {"model": "tiny", "messages": _USER}),
    "/detokenize": ({"model": "tiny", "tokens": [3, 4]},),
    "/generate": (
        {"prompts": ["a", "b"], "max_tokens": 2},
        {"prompt": "a", "max_tokens": 2, "n": 2, "stream": True},
        {"model_id": "tiny", "prompt": [3, 4], "max_length": 2},
    ),
    **{
        path: ({"prompt": "hello", "max_new_tokens": 2, "temperature": 0.5},)
        for path in sorted(GENERATING_PATHS - {"/generate"})
    },
    # In the order of the routes: each unload after its load, and the name that stands in a path at last.
    "/v1/load_lora_adapter": ({"lora_name": "a", "lora_path": _ADAPTER, "load_inplace": True},),
    "/v1/unload_lora_adapter": ({"lora_name": "a"},),
    "/load_lora_adapter": ({"lora_name": "a", "lora_path": _ADAPTER, "pinned": True},),
    "/unload_lora_adapter": ({"lora_name": "a"},),
    "/admin/v1/adapters": ({"name": "{name}", "source": _ADAPTER, "pin": True, "prefetch": "dram"},),
    "/admin/v1/models": ({"source": "hub:o/m", "name": "{name}"},),
    "/models/load": ({"model_id": "o/m"},),
    "/models/unload": ({"model_id": "o/m"},),
    "/admin/v1/adapters/{name}/prefetch": ({"tier": "device", "wait": False},),
}


@dataclass(frozen=True, slots=True)
class AnyRequest:
    """What goes over the wire. headers: latin-1."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


@dataclass(frozen=True, slots=True)
class Route:
    """bodies: valid ones. fields: those of its schema at the top level, with their possible JSON types."""

    method: str
    path: str
    bodies: Sequence[Any] = ()
    fields: Mapping[str, Sequence[str]] = field(default_factory=dict)


def routes_of(openapi: Mapping[str, Any]) -> list[Route]:
    """Every route of an application, by its own description."""
    return [
        _route(openapi, path, method, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]


def _route(openapi: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> Route:
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" not in content:
        return Route(method.upper(), path)
    schema = content["application/json"].get("schema", {})
    fields = {
        name: _types(openapi, inner)
        for one in _branches(openapi, schema)
        for name, inner in one.get("properties", {}).items()
    }
    return Route(method.upper(), path, VALID.get(path) or [smallest(openapi, schema)], fields)


def _resolved(openapi: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        schema = openapi["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _branches(openapi: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    schema = _resolved(openapi, schema)
    yield schema
    for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _branches(openapi, one)


def _types(openapi: Mapping[str, Any], schema: Mapping[str, Any]) -> Sequence[str]:
    return sorted({one["type"] for one in _branches(openapi, schema) if "type" in one})


def smallest(openapi: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """The smallest value that a schema allows."""
    schema = _resolved(openapi, schema)
    if "default" in schema or "const" in schema or "enum" in schema:
        return schema.get("const", schema.get("default", *schema.get("enum", [None])[:1]))
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return smallest(openapi, choices[0])
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {})
            return {name: smallest(openapi, properties[name]) for name in schema.get("required", ())}
        case "array":
            return [smallest(openapi, schema.get("items", {}))]
        case kind:
            return {"string": "a", "integer": 1, "number": 1.0, "boolean": True}.get(kind or "")


# -- any JSON value. Lone surrogates, NUL and numbers at the limits of every integer are likely on purpose.

_LIMITS = [sign * 2**bits + step for bits in (31, 32, 53, 63, 64) for sign in (1, -1) for step in (-1, 0, 1)]
_TEXTS = (
    "",
    "\x00",
    "\ud800",
    "a\udfff",
    "\n",
    "\x1b[31m",
    "a**",
    "root ::= root",
    "{{",
    "<s>",
    "{}",
    "é" * 300,
)
_KEYS = (
    "type",
    "text",
    "name",
    "role",
    "content",
    "function",
    "json",
    "regex",
    "grammar",
    "schema",
    "\ud800",
    "",
)
_texts = st.one_of(st.sampled_from(_TEXTS), st.text(st.characters(categories=None, codec=None), max_size=8))
_integers = st.one_of(st.integers(-3, 300), st.sampled_from([*_LIMITS, 3_000_000_000, 10**30, -(10**400)]))
_scalars = st.one_of(st.none(), st.booleans(), _integers, st.floats(), _texts)


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.one_of(st.sampled_from(_KEYS), _texts)
    return st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4))


json_values = st.recursive(_scalars, _containers, max_leaves=8)
_BY_TYPE: Mapping[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "boolean": st.booleans(),
    "integer": _integers,
    "number": st.one_of(_integers, st.floats()),
    "string": _texts,
    "array": st.one_of(*(st.lists(one, max_size=4) for one in (_texts, _integers, json_values))),
    "object": st.dictionaries(st.one_of(st.sampled_from(_KEYS), _texts), json_values, max_size=4),
}
_TYPE_NAMES = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
}


def _like(value: Any) -> Sequence[str]:
    return [_TYPE_NAMES.get(type(value), "object")]


def places_in(value: Any, here: Path = ()) -> Iterator[tuple[Path, Sequence[str]]]:
    """Everything in it, itself left out, with its JSON type."""
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    )
    for key, inner in items:
        yield (*here, key), _like(inner)
        yield from places_in(inner, (*here, key))


def replaced(body: Any, path: Path, value: Any) -> Any:
    """A copy that has the value there."""
    if not path:
        return value
    copy = deepcopy(body)
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


@st.composite
def json_bodies(draw: st.DrawFn, route: Route) -> Any:
    """A valid body of the route in which up to three fields are something else, mostly of a type that they
    may have: such a value comes further than one that the first look refuses."""
    body = deepcopy(draw(st.sampled_from(list(route.bodies))))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        known = [((name,), types) for name, types in route.fields.items()] if isinstance(body, dict) else []
        path, types = draw(st.sampled_from([((), ["object"]), *places_in(body), *known]))
        fitting = [_BY_TYPE[name] for name in types if name in _BY_TYPE]
        body = replaced(body, path, draw(st.one_of(json_values, *fitting, *fitting)))
    return body


# -- what is no JSON

_RAW = (b"", b"null", b"1", b'"\xff"', b"9" * 5000, b"[" * 10_000 + b"]" * 10_000, b'{"model": "tiny"')
_CONTENT_TYPES = (
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "multipart/form-data",
    "",
    "\xff",
)
_HEADERS = ("x-request-id", "authorization", "traceparent", "content-encoding", "accept", "x-session-id")
_header_texts = st.text(
    st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=30
)
_segments = st.sampled_from(("x", "resp_1", "%00", "%ff", "%ed%a0%80", "%0a", "..", "a" * 3000, "%1b[31m"))


@st.composite
def raw_bodies(draw: st.DrawFn, route: Route) -> bytes:
    whole = json.dumps(draw(st.sampled_from(list(route.bodies) or [{}]))).encode()
    made = (
        st.sampled_from(_RAW),
        st.binary(max_size=40),
        st.integers(0, len(whole)).map(lambda cut: whole[:cut]),
    )
    return draw(
        st.one_of(*made, st.sampled_from((gzip.compress(whole), whole, whole.decode().encode("utf-16"))))
    )


@st.composite
def any_requests(draw: st.DrawFn, routes: Sequence[Route]) -> AnyRequest:
    """Nine in ten for routes with a body are JSON."""
    route: Route = draw(st.sampled_from([one for one in routes for _ in range(9 if one.bodies else 1)]))
    headers = draw(st.dictionaries(st.sampled_from(_HEADERS), _header_texts, max_size=1))
    path = re.sub(r"\{\w+\}", lambda _: draw(_segments), route.path)
    if route.bodies and draw(st.sampled_from([True] * 9 + [False])):
        body = json.dumps(draw(json_bodies(route))).encode()
        return AnyRequest(route.method, path, body, {"content-type": "application/json", **headers})
    content_type = draw(st.sampled_from(_CONTENT_TYPES))
    return AnyRequest(route.method, path, draw(raw_bodies(route)), {"content-type": content_type, **headers})
