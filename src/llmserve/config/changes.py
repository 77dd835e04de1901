"""What a changed manifest means for a running cluster: which changes apply at once, and which need a restart
of which processes. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llmserve.config.adapter_source import AdapterSourceKind
from llmserve.config.conflict import Path
from llmserve.config.lora import adapter_kinds, lora_of
from llmserve.config.plan_types import engine_names
from llmserve.config.schema import AdapterSpec, Manifest, ModelSpec, ServedModel
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
from llmserve.config.several_models import in_file

_Path = tuple[str, ...]

# The readers of a key that is not live, by the longest path that begins it.
_READERS: Mapping[_Path, tuple[Reader, ...]] = {
    ("apiVersion",): ("cluster",),
    ("kind",): ("cluster",),
    ("metadata",): ("cluster",),
    ("models",): ("apiserver", "worker"),
    ("models", "tenants"): ("apiserver",),
    ("lora",): ("router", "apiserver", "worker"),
    ("deployment",): ("cluster",),
    ("engine",): ("worker",),
    ("engine", "dtype"): ("apiserver", "worker"),
    ("engine", "max_model_len"): ("apiserver", "worker"),
    ("engine", "env"): ("apiserver", "worker"),
    ("engine", "speculation"): ("apiserver", "worker"),
    ("engine", "task"): ("apiserver", "worker"),
    ("engine", "speculative_tokens"): ("apiserver", "worker"),
    ("engine", "max_logprobs"): ("apiserver", "worker"),
    ("engine", "tool_call_parser"): ("apiserver",),
    ("engine", "reasoning_parser"): ("apiserver", "worker"),
    ("engine", "grammar_backend"): ("apiserver", "worker"),
    ("engine", "options"): ("apiserver", "worker"),
    ("kv_cache",): ("worker",),
    ("kv_cache", "hot_keep_secs"): ("kvmanager",),
    ("kv_cache", "tenant_hotset_gb"): ("kvmanager",),
    ("storageClasses",): ("kvmanager", "worker"),
    ("transfer",): ("worker",),
    ("transfer", "mode"): ("router", "worker"),
    ("transfer", "push_min_tokens"): ("router",),
    ("transfer", "engine_order"): ("kvmanager", "worker"),
    ("kv_cache", "prefetch_on_prefix"): ("router",),
    ("scheduling",): ("router",),
    ("scheduling", "router_patience_seconds"): ("apiserver",),
    ("scheduling", "retry_share"): ("apiserver",),
    ("scheduling", "retry_burst"): ("apiserver",),
    ("scheduling", "retry_tenant_share"): ("apiserver",),
    ("api",): ("apiserver",),
    ("batches",): ("apiserver",),
    ("security",): ("apiserver",),
    ("security", "audit"): ("cluster",),
    ("security", "mtls"): ("cluster",),
    ("state",): ("router", "apiserver"),
    ("observability",): ("cluster",),
}


@dataclass(frozen=True, slots=True)
class LiveChange:
    """A live key with a new value. before, after: the values as text; both are empty where they are long or
    secret."""

    path: str
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.before} -> {self.after}" if self.after else f"{self.path}: changed"


@dataclass(frozen=True, slots=True)
class NeedsRestart:
    """A key whose new value these processes apply only at their next start."""

    path: str
    processes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path}: needs a restart of {', '.join(self.processes)}"


@dataclass(frozen=True, slots=True)
class Changes:
    live: tuple[LiveChange, ...] = ()
    restart: tuple[NeedsRestart, ...] = ()


def compare(started: Manifest, last: Manifest, new: Manifest) -> Changes:
    """started: the manifest with which the processes were started. last: the one whose live keys are
    applied."""
    live = {str(change.path): change for change in _live_changes(last, new)}
    restart: dict[str, list[str]] = {}
    for path, names in _restarts(started, new):
        restart.setdefault(path, []).extend(names)
    needed = (NeedsRestart(path, tuple(dict.fromkeys(names))) for path, names in restart.items() if names)
    return Changes(tuple(live.values()), tuple(needed))


def _live_changes(last: Manifest, new: Manifest) -> Iterator[LiveChange]:
    for old, model in _pairs(last, new):
        for one in _differences(last.alone(old), new.alone(model)):
            if one.live:
                yield _change(one, in_file(new, model, one.path))


def _restarts(started: Manifest, new: Manifest) -> Iterator[tuple[str, Iterable[str]]]:
    """Yields the path of each key that is not live, and the processes that must start again for it."""
    if len(started.served) + len(new.served) > 2 and _served_names(started) != _served_names(new):
        yield "models", _process_names(started, "", ("cluster",))
    for old, model in _pairs(started, new):
        before, after = started.alone(old), new.alone(model)
        for one in _differences(before, after):
            path = path_text(in_file(new, model, one.path))
            yield path, _process_names(started, old.served_name, one.at_start)
        if not _workers_can_take(model.adapters, before):
            path = path_text(in_file(new, model, ("models", "adapters")))
            yield path, _process_names(started, old.served_name, ("worker",))


def _served_names(manifest: Manifest) -> set[str]:
    return {one.served_name for one in manifest.served}


def _pairs(old: Manifest, new: Manifest) -> list[tuple[ServedModel, ServedModel]]:
    """Returns the models of the same name, at least one pair: what is not of a model is compared with it."""
    named = {one.served_name: one for one in old.served}
    pairs = [(named[one.served_name], one) for one in new.served if one.served_name in named]
    return pairs or [(old.served[0], new.served[0])]


def _workers_can_take(adapters: Sequence[AdapterSpec], started: Manifest) -> bool:
    """Whether these adapters leave as it is what workers know of them from their start on."""
    model = started.model.model_copy(update={"adapters": adapters})
    return _known_at_start(started.model_copy(update={"models": (model,)})) == _known_at_start(started)


def _known_at_start(manifest: Manifest) -> tuple[bool, frozenset[AdapterSourceKind]]:
    """Returns whether workers run adapters, and the places for which they need something in their
    environment: leave to ask the hub, and in a pod the keys of buckets."""
    kinds = {AdapterSourceKind.HUB}
    if manifest.deployment.mode == "k8s":
        kinds.add(AdapterSourceKind.S3)
    return lora_of(manifest) is not None, adapter_kinds(manifest) & kinds


def is_live(path: _Path) -> bool:
    """path: as that of a ManifestKey."""
    return path in _LIVE


@dataclass(frozen=True, slots=True)
class _Difference:
    """at_start: the readers that apply the new value only at their next start."""

    path: _Path
    live: bool
    at_start: tuple[Reader, ...]
    before: Any
    after: Any


def _differences(
    old: ManifestSection, new: ManifestSection, path: _Path = (), above: Live | None = None
) -> Iterator[_Difference]:
    """A list is one value, except for the keys of its items that are AtStart. Manifests are of one model
    each."""
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        live = marker(field, Live) or above
        if isinstance(old, Manifest) and isinstance(new, Manifest) and name == "models":
            yield from _between_models(old.model, new.model)
        elif isinstance(before, ManifestSection) and isinstance(after, ManifestSection):
            yield from _differences(before, after, (*path, name), live)
        elif _is_list_of_sections(before) or _is_list_of_sections(after):
            yield from _in_list((*path, name), live, before, after)
        elif before != after:
            yield _difference((*path, name), live, before, after)


def _between_models(old: ServedModel, new: ServedModel) -> Iterator[_Difference]:
    for one in _differences(old.without_sections(), new.without_sections(), ("models",)):
        key = one.path[1]
        yield replace(one, path=("models", "primary", key)) if key in ModelSpec.model_fields else one


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
        if _by_tenant(before, name) != _by_tenant(after, name):
            yield _Difference((*path, ITEM, name), False, at.readers, None, None)


def _dump(items: Sequence[ManifestSection], without: Iterable[str]) -> list[dict[str, Any]]:
    return [item.model_dump(exclude=set(without)) for item in items]


def _by_tenant(items: Sequence[ManifestSection], name: str) -> dict[Any, Any]:
    """Returns the value of this key for each tenant that has one."""
    return {item.tenant: value for item in items if (value := getattr(item, name)) is not None}  # type: ignore[attr-defined]


def _is_list_of_sections(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], ManifestSection)


def _readers(path: _Path) -> tuple[Reader, ...]:
    return next(_READERS[path[:end]] for end in range(len(path), 0, -1) if path[:end] in _READERS)


def _change(one: _Difference, path: Path) -> LiveChange:
    is_short = not isinstance(one.before or one.after, tuple | ManifestSection) and one.path[0] != "security"
    texts = (_text(one.before), _text(one.after)) if is_short else ()
    return LiveChange(path_text(path), *texts)


def _text(value: Any) -> str:
    return "not set" if value is None else str(value)


def _process_names(manifest: Manifest, model: str, readers: Iterable[Reader]) -> tuple[str, ...]:
    """model: only workers of this model read the key."""
    return tuple(dict.fromkeys(name for reader in readers for name in _names(manifest, model, reader)))


def _names(manifest: Manifest, model: str, reader: Reader) -> list[str]:
    """Returns the names that the plan gives to the processes of a reader."""
    if reader == "cluster":
        return ["the whole cluster"]
    if reader == "worker":
        return [one.name for one in engine_names(manifest) if one.model == model]
    if manifest.deployment.local.single_process:
        return ["control-0"]
    return [f"{reader}-{index}" for index in range(getattr(manifest.deployment.replicas, reader))]


def _live_paths() -> Iterator[_Path]:
    below: set[_Path] = set()
    for key in walk(Manifest):
        inherits = key.parent in below and marker(key.field, AtStart) is None
        if inherits or marker(key.field, Live) is not None:
            below.add(key.path)
            yield key.path


_LIVE = frozenset(_live_paths())
