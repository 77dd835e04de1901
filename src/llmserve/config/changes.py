"""What a changed manifest means for a cluster that runs: what is obeyed at once, and what needs which
processes started again. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmserve.config.schema import Manifest
from llmserve.config.schema.section import (
    ITEM,
    AtStart,
    Live,
    ManifestSection,
    Reader,
    marker,
    path_text,
    walk,
)

_Path = tuple[str, ...]

# Who reads a key that is not live, by the longest path that begins it.
_READERS: Mapping[_Path, tuple[Reader, ...]] = {
    ("apiVersion",): ("cluster",),
    ("kind",): ("cluster",),
    ("metadata",): ("cluster",),
    ("models",): ("apiserver", "worker"),
    ("deployment",): ("cluster",),
    ("engine",): ("worker",),
    ("engine", "dtype"): ("apiserver", "worker"),
    ("engine", "max_model_len"): ("apiserver", "worker"),
    ("engine", "env"): ("apiserver", "worker"),
    ("engine", "max_logprobs"): ("apiserver", "worker"),
    ("engine", "tool_call_parser"): ("apiserver",),
    ("engine", "reasoning_parser"): ("apiserver", "worker"),
    ("engine", "grammar_backend"): ("apiserver", "worker"),
    ("kv_cache",): ("worker",),
    ("kv_cache", "hot_keep_secs"): ("kvmanager",),
    ("kv_cache", "tenant_hotset_gb"): ("kvmanager",),
    ("storageClasses",): ("kvmanager", "worker"),
    ("transfer",): ("worker",),
    ("transfer", "mode"): ("apiserver",),
    ("transfer", "push_min_tokens"): ("apiserver",),
    ("transfer", "engine_order"): ("kvmanager", "worker"),
    ("kv_cache", "prefetch_on_prefix"): ("router",),
    ("scheduling",): ("router",),
    ("scheduling", "router_patience_seconds"): ("apiserver",),
    ("scheduling", "retry_share"): ("apiserver",),
    ("scheduling", "retry_burst"): ("apiserver",),
    ("api",): ("apiserver",),
    ("security",): ("apiserver",),
    ("state",): ("router", "apiserver"),
    ("observability",): ("cluster",),
}


@dataclass(frozen=True, slots=True)
class LiveChange:
    """A live key with another value. before, after: as texts; both empty where they are long or secret."""

    path: str
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.before} -> {self.after}" if self.after else f"{self.path}: changed"


@dataclass(frozen=True, slots=True)
class NeedsRestart:
    """A key that these processes obey only from their next start."""

    path: str
    processes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path}: needs a restart of {', '.join(self.processes)}"


@dataclass(frozen=True, slots=True)
class Changes:
    live: tuple[LiveChange, ...] = ()
    restart: tuple[NeedsRestart, ...] = ()


def compare(started: Manifest, last: Manifest, new: Manifest) -> Changes:
    """started: what the processes were started with. last: what live keys have now."""
    live = (one for one in _differences(last, new) if one.live)
    left = (
        NeedsRestart(path_text(one.path), _names(started, one.left)) for one in _differences(started, new)
    )
    return Changes(tuple(_change(one) for one in live), tuple(one for one in left if one.processes))


def is_live(path: _Path) -> bool:
    """path: as that of a ManifestKey."""
    return path in _LIVE


@dataclass(frozen=True, slots=True)
class _Difference:
    """left: who does not obey it while it runs."""

    path: _Path
    live: bool
    left: tuple[Reader, ...]
    before: Any
    after: Any


def _differences(
    old: ManifestSection, new: ManifestSection, path: _Path = (), above: Live | None = None
) -> Iterator[_Difference]:
    """A list is one value, but for what is AtStart in its items."""
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        live = marker(field, Live) or above
        if isinstance(before, ManifestSection) and isinstance(after, ManifestSection):
            yield from _differences(before, after, (*path, name), live)
        elif _is_list_of_sections(before) or _is_list_of_sections(after):
            yield from _in_list((*path, name), live, before, after)
        elif before != after:
            yield _difference((*path, name), live, before, after)


def _difference(path: _Path, live: Live | None, before: Any, after: Any) -> _Difference:
    return _Difference(path, live is not None, live.at_start if live else _readers(path), before, after)


def _in_list(
    path: _Path, live: Live | None, before: Sequence[ManifestSection], after: Sequence[ManifestSection]
) -> Iterator[_Difference]:
    items = (before or after)[0]
    fixed = {name: at for name, field in type(items).model_fields.items() if (at := marker(field, AtStart))}
    if _dump(before, fixed) != _dump(after, fixed):
        yield _difference(path, live, before, after)
    for name, at in fixed.items():
        if _set_values(before, name) != _set_values(after, name):
            yield _Difference((*path, ITEM, name), False, at.readers, None, None)


def _dump(items: Sequence[ManifestSection], without: Iterable[str]) -> list[dict[str, Any]]:
    return [item.model_dump(exclude=set(without)) for item in items]


def _set_values(items: Sequence[ManifestSection], name: str) -> dict[Any, Any]:
    """Of each tenant that has one."""
    return {item.tenant: value for item in items if (value := getattr(item, name)) is not None}  # type: ignore[attr-defined]


def _is_list_of_sections(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], ManifestSection)


def _readers(path: _Path) -> tuple[Reader, ...]:
    return next(_READERS[path[:end]] for end in range(len(path), 0, -1) if path[:end] in _READERS)


def _change(one: _Difference) -> LiveChange:
    is_short = not isinstance(one.before or one.after, tuple | ManifestSection) and one.path[0] != "security"
    texts = (_text(one.before), _text(one.after)) if is_short else ()
    return LiveChange(path_text(one.path), *texts)


def _text(value: Any) -> str:
    return "not set" if value is None else str(value)


def _names(manifest: Manifest, readers: Iterable[Reader]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for reader in readers for name in _processes(manifest, reader)))


def _processes(manifest: Manifest, reader: Reader) -> list[str]:
    """The names that config/plan.py gives them."""
    deployment, replicas = manifest.deployment, manifest.deployment.replicas
    if reader == "cluster":
        return ["the whole cluster"]
    if reader == "worker":
        roles = (
            {"prefill": replicas.prefill, "decode": replicas.decode}
            if deployment.disaggregated
            else {"aggregated": replicas.decode}
        )
        return [f"{role}-{index}" for role, count in roles.items() for index in range(count)]
    if deployment.local.single_process:
        return ["control-0"]
    count: int = getattr(replicas, reader)
    return [f"{reader}-{index}" for index in range(count)]


def _live_paths() -> Iterator[_Path]:
    below: set[_Path] = set()
    for knob in walk(Manifest):
        inherits = knob.parent in below and marker(knob.field, AtStart) is None
        if inherits or marker(knob.field, Live) is not None:
            below.add(knob.path)
            yield knob.path


_LIVE = frozenset(_live_paths())
