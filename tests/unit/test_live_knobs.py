"""Each knob that is marked live really is taken over by those that its marker names."""

from typing import Any

import pytest

from llmserve.apiserver.auth.credential import Credential
from llmserve.apiserver.live_settings import LiveSettings
from llmserve.config.schema import Manifest
from llmserve.config.schema.section import (
    ITEM,
    AtStart,
    ForAllModels,
    Live,
    ManifestKey,
    marker,
    path_text,
    walk,
)
from llmserve.router.settings import RouterSettings

_BASE: dict[str, Any] = {"kind": "LLMServe", "models": {"primary": {"source": "hub:a/b"}}}
# Two values for each that is not a number.
_VALUES: dict[str, tuple[Any, Any]] = {
    "batches.weight": (0.5, 0.25),
    "budgets.per_tenant": ({"max_requests_in_flight": 2}, {"max_requests_in_flight": 3}),
    "budgets.tenants": ([], [{"tenant": "red", "max_tokens_per_second": 5.0}]),
    "models.adapters": ([], [{"name": "sql", "source": "hub:org/sql"}]),
    "models[].adapters": ([], [{"name": "sql", "source": "hub:org/sql"}]),
    "models[].share": (1.0, 0.5),
    "lora.allowed_sources": ([], ["dir:/adapters"]),
    "kv_cache.prefetch_on_prefix": (False, True),
    "scheduling.routing": ("kv_aware", "round_robin"),
    "scheduling.disaggregate": ("auto", "always"),
    "scheduling.weights": ([], [{"tenant": "red", "weight": 2.0}]),
    "security.api_keys": ([{"tenant": "red", "key": "a"}], [{"tenant": "red", "key": "b"}]),
    "security.cors_origins": ([], ["https://chat.example.com"]),
    "observability.log_level": ("info", "debug"),
}


def _live() -> list[tuple[ManifestKey, Live]]:
    return [
        (knob, live)
        for knob in walk(Manifest)
        if (live := marker(knob.field, Live)) is not None and not _is_for_all_models(knob)
    ]


def _is_for_all_models(knob: ManifestKey) -> bool:
    """Whether the entry of a model cannot have the key."""
    return knob.path[:2] == ("models", ITEM) and marker(knob.field, ForAllModels) is not None


def _values(knob: ManifestKey) -> tuple[Any, Any]:
    number = int if "int" in str(knob.field.annotation) else float
    return _VALUES.get(path_text(knob.path), (number(2), number(3)))


def _manifest(knob: ManifestKey, value: Any) -> Manifest:
    data: Any = value
    for part in reversed(knob.path):
        data = [{"source": "hub:a/b"} | data] if part == ITEM else {part: data}
    if knob.path[:2] == ("models", ITEM):
        return Manifest.model_validate(_BASE | data)
    return Manifest.model_validate(_BASE | {name: _BASE.get(name, {}) | keys for name, keys in data.items()})


def _router(manifest: Manifest) -> object:
    """What a reload changes (RouterLiveSettings)."""
    return RouterSettings.of(manifest), manifest.observability.log_level


def _worker(manifest: Manifest) -> object:
    """What a heartbeat's answer tells."""
    settings = RouterSettings.of(manifest)
    return settings.heartbeat_seconds, manifest.observability.log_level


def _knows(settings: LiveSettings, key: str) -> bool:
    return settings.keys.find(Credential(key).digest) is not None


def _apiserver(manifest: Manifest) -> object:
    settings = LiveSettings.of(manifest, {})
    return (
        _knows(settings, "a"),
        _knows(settings, "b"),
        settings.cors_origins,
        settings.limits,
        settings.explain_requests,
        settings.log_level,
    )


_TAKES_OVER = {"router": _router, "worker": _worker, "apiserver": _apiserver}


@pytest.mark.parametrize(("knob", "live"), _live(), ids=lambda one: getattr(one, "path", "."))
def test_it_reaches_each_reader(knob: ManifestKey, live: Live) -> None:
    before, after = (_manifest(knob, value) for value in _values(knob))
    for reader in live.readers:
        assert _TAKES_OVER[reader](before) != _TAKES_OVER[reader](after), (path_text(knob.path), reader)


def test_what_is_marked_otherwise_stands_below_a_live_list() -> None:
    marked = [knob for knob in walk(Manifest) if marker(knob.field, AtStart) is not None]
    lists = {knob.path for knob, _ in _live()}
    assert marked
    assert all(knob.path[:-2] in lists and knob.path[-2] == ITEM for knob in marked)
