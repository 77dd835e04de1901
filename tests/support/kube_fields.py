"""Server-side apply on plain data, driven by Kubernetes' own schemas: which fields an object sets, who owns
them, and what applying it does to the object that is there.

The rules are those of kubernetes.io/docs/reference/using-api/server-side-apply: `x-kubernetes-list-type` and
`-map-type` of the schema say which lists and maps are one value and which are merged.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

Path = tuple[Any, ...]
Schema = Mapping[str, Any]
_ITEM = "item"  # ("item", ((key, value), ...)): an entry of a list of type map
_IDENTITY = frozenset({("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")})


class Conflict(Exception):
    """Another manager owns these fields, with other values: (manager, path)."""

    def __init__(self, found: list[tuple[str, Path]]) -> None:
        super().__init__(found)
        self.found = found


class UnknownField(Exception):
    """The schema has no such field."""


class Fields:
    """The schema of one kind. `definitions` are those of the API version."""

    def __init__(self, schema: Schema, definitions: Mapping[str, Schema]) -> None:
        self._schema, self._definitions = schema, definitions

    def leaves(self, data: Any) -> dict[Path, Any]:
        """What the object sets, by path. Errors: UnknownField."""
        return {path: value for path, value in self._walk((), data, self._schema) if path not in _IDENTITY}

    def _walk(self, path: Path, data: Any, schema: Schema) -> Iterator[tuple[Path, Any]]:
        schema = self._resolve(schema)
        if isinstance(data, dict) and data and schema.get("x-kubernetes-map-type") != "atomic":
            for key, value in data.items():
                yield from self._walk((*path, key), value, _field(schema, (*path, key)))
        elif isinstance(data, list) and data and schema.get("x-kubernetes-list-type") == "map":
            keys = schema["x-kubernetes-list-map-keys"]
            for item in data:
                entry = (_ITEM, tuple((key, item.get(key, _DEFAULTS.get(key))) for key in keys))
                yield from self._walk((*path, entry), item, schema["items"])
        else:
            yield path, data

    def _resolve(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            extra = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**self._definitions[schema["$ref"].rpartition("/")[2]], **extra}
        return schema


_DEFAULTS = {"protocol": "TCP"}


def _field(schema: Schema, path: Path) -> Schema:
    """Of an object's schema. One without properties takes anything."""
    properties = schema.get("properties")
    if properties is not None and path[-1] in properties:
        found: Schema = properties[path[-1]]
        return found
    extra = schema.get("additionalProperties", {} if properties is None else False)
    if extra is False:
        raise UnknownField(text(path))
    return extra if isinstance(extra, dict) else {}


def apply(
    live: dict[str, Any], owners: dict[str, set[Path]], manager: str, wanted: dict[Path, Any], force: bool
) -> None:
    """Changes `live` and `owners`. Errors: Conflict, and then nothing was changed."""
    taken = [
        (other, path)
        for other, paths in owners.items()
        for path in paths & wanted.keys()
        if other != manager and _get(live, path) != wanted[path]
    ]
    if taken and not force:
        raise Conflict(taken)
    for other, path in taken:
        owners[other].discard(path)
    others = set().union(*(paths for name, paths in owners.items() if name != manager))
    for path in sorted(owners.get(manager, set()) - wanted.keys() - others, key=_is_needed):
        _remove(live, path)
    for path, value in wanted.items():
        _set(live, path, value)
    owners[manager] = set(wanted)


def text(path: Path) -> str:
    """As the API server writes it: .spec.containers[name="a"].image."""
    parts = []
    for part in path:
        if isinstance(part, tuple):
            keys = ",".join(f'{key}="{value}"' for key, value in part[1])
            parts.append(f"[{keys}]")
        else:
            parts.append(f".{part}")
    return "".join(parts)


def _find(items: list[Any], entry: Path) -> Any:
    keys = dict(entry[1])
    return next(
        (item for item in items if all(item.get(k, _DEFAULTS.get(k)) == v for k, v in keys.items())), None
    )


def _get(live: Any, path: Path) -> Any:
    for part in path:
        if live is None:
            return None
        live = _find(live, part) if isinstance(part, tuple) else live.get(part)
    return live


def _set(live: Any, path: Path, value: Any) -> None:
    for part, following in pairwise(path):
        if isinstance(part, tuple):
            found = _find(live, part)
            if found is None:
                found = {key: of for key, of in part[1] if of is not None}
                live.append(found)
            live = found
        else:
            live = live.setdefault(part, [] if isinstance(following, tuple) else {})
    live[path[-1]] = value


def _is_needed(path: Path) -> tuple[bool, int]:
    """Sorts a field after those that are found by it: the key of an entry, and that of one around it."""
    is_key = len(path) > 1 and isinstance(path[-2], tuple) and path[-1] in dict(path[-2][1])
    return is_key, -len(path)


def _remove(live: Any, path: Path) -> None:
    """With what is empty then, and with an entry of which only its key is left."""
    trail = [live]
    for part in path[:-1]:
        inside = _find(trail[-1], part) if isinstance(part, tuple) else trail[-1].get(part)
        if inside is None:
            return
        trail.append(inside)
    trail[-1].pop(path[-1], None)
    for holder, part, inner in reversed(list(zip(trail[:-1], path[:-1], trail[1:], strict=True))):
        is_bare = not inner or (isinstance(part, tuple) and inner.keys() <= dict(part[1]).keys())
        if not is_bare:
            return
        if isinstance(part, tuple):
            holder.remove(inner)
        else:
            holder.pop(part, None)
