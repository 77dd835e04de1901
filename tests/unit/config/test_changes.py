"""What a changed manifest means for a running cluster."""

from typing import Any

import pytest

from llmserve.config.changes import compare, is_live
from llmserve.config.plan import plan_local
from llmserve.config.schema import Manifest
from llmserve.config.schema.section import ITEM, walk

_BASE = {"kind": "LLMServe", "models": {"primary": {"source": "hub:some/model"}}}


def _manifest(**sections: Any) -> Manifest:
    return Manifest.model_validate(_BASE | sections)


def _live(old: Manifest, new: Manifest) -> list[str]:
    return [str(one) for one in compare(old, old, new).live]


def _restart(old: Manifest, new: Manifest) -> list[str]:
    return [str(one) for one in compare(old, old, new).restart]


def test_an_equal_manifest_changes_nothing() -> None:
    weights = {"weights": [{"tenant": "red", "weight": 4}]}
    assert compare(*[_manifest(scheduling=weights) for _ in range(3)]) == compare(*[_manifest()] * 3)
    assert not _live(_manifest(), _manifest())


def test_a_live_value_is_named_with_what_it_was() -> None:
    old, new = _manifest(), _manifest(scheduling={"srpt_bias": 2.0}, budgets={"max_tokens_in_flight": 9})
    assert _live(old, new) == [
        "budgets.max_tokens_in_flight: not set -> 9",
        "scheduling.srpt_bias: 5.0 -> 2.0",
    ]
    assert not _restart(old, new)


def test_adapters_come_and_go_while_the_cluster_runs() -> None:
    adapter = {"name": "sql", "source": "dir:/adapters/sql"}
    models = {**_BASE["models"], "adapters": [adapter]}  # type: ignore[dict-item]
    old, new = _manifest(lora={}), _manifest(lora={"allowed_sources": ["dir:/a"]}, models=models)
    assert _live(old, new) == ["models.adapters: changed", "lora.allowed_sources: changed"]
    assert _restart(old, new) == ["lora.allowed_sources: needs a restart of prefill-0, decode-0"]


_WORKERS = ["models.adapters: needs a restart of prefill-0, decode-0"]


@pytest.mark.parametrize(
    ("before", "after", "lora", "restart"),
    [
        ([], ["dir:/a"], None, _WORKERS),
        (["dir:/a"], [], None, _WORKERS),
        (["dir:/a"], ["dir:/b"], None, []),
        (["dir:/a"], ["dir:/a", "hub:org/b"], None, _WORKERS),
        (["hub:org/a"], ["dir:/a"], None, _WORKERS),
        (["hub:org/a"], ["hub:org/b"], None, []),
        ([], ["dir:/a"], {}, []),
        ([], ["hub:org/a"], {}, _WORKERS),
        ([], ["hub:org/a"], {"allowed_sources": ["hub:org"]}, []),
        ([], ["s3://b/a"], {}, []),
    ],
)
def test_adapters_that_workers_cannot_take_while_they_run(
    before: list[str], after: list[str], lora: dict[str, Any] | None, restart: list[str]
) -> None:
    old, new = (
        _manifest(
            models=_BASE["models"] | {"adapters": [{"name": one[-1], "source": one} for one in sources]},  # type: ignore[operator]
            lora=lora,
        )
        for sources in (before, after)
    )
    assert (_live(old, new), _restart(old, new)) == (["models.adapters: changed"], restart)


def test_the_first_bucket_needs_a_restart_of_pods() -> None:
    old, new = (
        _manifest(
            models=_BASE["models"] | {"adapters": adapters},  # type: ignore[operator]
            lora={},
            deployment={"mode": "k8s"},
        )
        for adapters in ([], [{"name": "a", "source": "s3://b/a"}])
    )
    assert _restart(old, new) == _WORKERS


def test_adapters_do_not_answer_for_what_another_key_changed() -> None:
    adapter = {"name": "sql", "source": "dir:/sql"}
    new = _manifest(
        models=_BASE["models"] | {"adapters": [adapter]},  # type: ignore[operator]
        lora={"allowed_sources": ["hub:org"]},
    )
    assert _restart(_manifest(lora={}), new) == [
        "lora.allowed_sources: needs a restart of prefill-0, decode-0"
    ]


def test_lists_and_what_is_below_a_live_section_are_live() -> None:
    new = _manifest(
        scheduling={"weights": [{"tenant": "red", "weight": 4}]},
        budgets={"per_tenant": {"max_requests_in_flight": 3}},
    )
    assert _live(_manifest(), new) == [
        "budgets.per_tenant.max_requests_in_flight: not set -> 3",
        "scheduling.weights: changed",
    ]
    assert _live(new, _manifest())[1] == "scheduling.weights: changed"


def test_keys_are_never_shown() -> None:
    new = _manifest(security={"api_keys": [{"tenant": "red", "key": "secret"}]})
    assert _live(_manifest(), new) == ["security.api_keys: changed"]
    assert "secret" not in repr(compare(_manifest(), _manifest(), new))


def test_a_quota_beside_a_key_is_the_stores_and_needs_its_restart() -> None:
    key = {"tenant": "red", "key": "k"}
    old = _manifest(security={"api_keys": [key]})
    new = _manifest(security={"api_keys": [key | {"kv_quota_gb": 1.0}]})
    assert not _live(old, new)
    assert _restart(old, new) == ["security.api_keys[].kv_quota_gb: needs a restart of kvmanager-0"]


def test_what_is_not_live_names_the_processes() -> None:
    replicas = {"prefill": 1, "decode": 2}
    old = _manifest(deployment={"replicas": replicas})
    new = _manifest(
        deployment={"replicas": replicas},
        engine={"kind": "sim"},
        storageClasses=[{"name": "d", "tier": "dram", "capacity_gb": 1.0}],
        metadata={"name": "other"},
    )
    assert _restart(old, new) == [
        "metadata.name: needs a restart of the whole cluster",
        "engine.kind: needs a restart of prefill-0, decode-0, decode-1",
        "storageClasses: needs a restart of kvmanager-0, prefill-0, decode-0, decode-1",
    ]


def test_a_value_may_be_live_for_some_and_not_for_others() -> None:
    old, new = _manifest(), _manifest(observability={"log_level": "debug"})
    assert _live(old, new) == ["observability.log_level: info -> debug"]
    assert _restart(old, new) == ["observability.log_level: needs a restart of kvmanager-0"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("retry_share", 0.1), ("retry_burst", 7), ("retry_tenant_share", 0.25)),
        *(("router_patience_seconds", 7.0), ("drain_timeout_seconds", 7.0), ("disaggregate", "always")),
    ],
)
def test_what_apiservers_read_of_scheduling_at_their_start(key: str, value: object) -> None:
    new = _manifest(scheduling={key: value})
    assert _restart(_manifest(), new) == [f"scheduling.{key}: needs a restart of apiserver-0"]


def test_what_needs_a_restart_is_named_until_it_had_one() -> None:
    started, last = _manifest(), _manifest(engine={"max_model_len": 99}, scheduling={"srpt_bias": 1.0})
    again = compare(started, last, last)
    assert again.live == ()
    assert [one.path for one in again.restart] == ["engine.max_model_len"]


@pytest.mark.parametrize("single_process", [False, True])
@pytest.mark.parametrize("disaggregated", [False, True])
def test_processes_have_the_names_of_the_plan(single_process: bool, disaggregated: bool) -> None:
    deployment = {
        "disaggregated": disaggregated,
        "local": {"single_process": single_process},
        "replicas": {} if single_process else {"apiserver": 2, "kvmanager": 2},
    }
    old = _manifest(deployment=deployment)
    new = _manifest(
        deployment=deployment,
        engine={"max_model_len": 99},
        security={"kv_sharing": "cluster"},
        transfer={"engine_order": []},
    )
    ports = iter(range(2000, 3000))
    planned = {spec.name for spec in plan_local(old, range(4), lambda: next(ports)).processes}
    named = {name for one in compare(old, old, new).restart for name in one.processes}
    assert named <= planned
    assert planned - named <= {"router-0"}


def test_every_key_is_live_or_has_readers() -> None:
    from llmserve.config.changes import _readers

    for knob in walk(Manifest):
        assert knob.section is not None or is_live(knob.path) or _readers(knob.path)


def test_items_of_a_live_list_are_live() -> None:
    assert is_live(("scheduling", "weights", ITEM, "weight"))
    assert is_live(("security", "api_keys", ITEM, "admin"))
    assert not is_live(("security", "api_keys", ITEM, "kv_quota_gb"))
    assert not is_live(("engine", "kind"))


_LARGE: dict[str, Any] = {"source": "hub:a/large"}
_SMALL: dict[str, Any] = {"source": "hub:a/small", "replicas": {"prefill": 1, "decode": 2}}
_LARGE_WORKERS = "large-prefill-0, large-decode-0"
_SMALL_WORKERS = "small-prefill-0, small-decode-0, small-decode-1"


def _listed(*models: dict[str, Any], **sections: Any) -> Manifest:
    return Manifest.model_validate({"kind": "LLMServe", "models": list(models)} | sections)


@pytest.mark.parametrize(
    ("small", "restart"),
    [
        (
            {"engine": {"chunked_prefill": False}},
            f"models[1].engine.chunked_prefill: needs a restart of {_SMALL_WORKERS}",
        ),
        (
            {"engine": {"tool_call_parser": "hermes"}},
            "models[1].engine.tool_call_parser: needs a restart of apiserver-0",
        ),
        ({"revision": "v2"}, f"models[1].revision: needs a restart of apiserver-0, {_SMALL_WORKERS}"),
        ({"tenants": ["red"]}, "models[1].tenants: needs a restart of apiserver-0"),
        ({"lora": {}}, f"models[1].lora: needs a restart of router-0, apiserver-0, {_SMALL_WORKERS}"),
        ({"disaggregated": False}, "models[1].disaggregated: needs a restart of the whole cluster"),
    ],
)
def test_a_key_of_one_model_needs_a_restart_of_its_workers(small: dict[str, Any], restart: str) -> None:
    old, new = _listed(_LARGE, _SMALL), _listed(_LARGE, _SMALL | small)
    assert restart in _restart(old, new)
    assert all(one.startswith("models[1]") for one in _restart(old, new))
    assert not _live(old, new)


def test_a_key_of_a_section_concerns_the_models_without_one_of_their_own() -> None:
    models = (_LARGE, _SMALL | {"engine": {"dtype": "float16"}})
    old, new = _listed(*models), _listed(*models, engine={"dtype": "float32"})
    assert _restart(old, new) == [f"engine.dtype: needs a restart of apiserver-0, {_LARGE_WORKERS}"]
    old, new = _listed(_LARGE, _SMALL), _listed(_LARGE, _SMALL, engine={"dtype": "float32"})
    everybody = f"apiserver-0, {_LARGE_WORKERS}, {_SMALL_WORKERS}"
    assert _restart(old, new) == [f"engine.dtype: needs a restart of {everybody}"]


def test_shares_and_adapters_of_a_model_are_live() -> None:
    adapters = [{"name": "sql", "source": "dir:/sql"}]
    old = _listed(_LARGE, _SMALL, lora={})
    new = _listed(
        _LARGE, _SMALL | {"share": 0.5, "adapters": adapters}, lora={}, scheduling={"srpt_bias": 2.0}
    )
    assert _live(old, new) == [
        "scheduling.srpt_bias: 5.0 -> 2.0",
        "models[1].adapters: changed",
        "models[1].share: 1.0 -> 0.5",
    ]
    assert not _restart(old, new)
    without = _listed(_LARGE, _SMALL)
    assert _restart(without, _listed(_LARGE, _SMALL | {"adapters": adapters})) == [
        f"models[1].adapters: needs a restart of {_SMALL_WORKERS}"
    ]


@pytest.mark.parametrize(
    "models", [(_LARGE,), (_LARGE, _SMALL, {"source": "hub:a/third"}), (_LARGE, {"source": "hub:a/b"})]
)
def test_a_model_comes_or_goes_with_a_restart_of_the_cluster(models: tuple[dict[str, Any], ...]) -> None:
    old, new = _listed(_LARGE, _SMALL), _listed(*models, scheduling={"srpt_bias": 2.0})
    assert _restart(old, new) == ["models: needs a restart of the whole cluster"]
    assert _live(old, new) == ["scheduling.srpt_bias: 5.0 -> 2.0"]


def test_the_order_and_the_form_of_models_change_nothing() -> None:
    old, new = _listed(_LARGE, _SMALL), _listed(_SMALL, _LARGE)
    assert not _live(old, new)
    assert not _restart(old, new)
    assert not _restart(_manifest(), _listed({"source": "hub:some/model"}))


def test_another_name_of_the_only_model_needs_its_processes() -> None:
    old, new = _manifest(), _manifest(models={"primary": {"source": "hub:some/model", "name": "other"}})
    assert _restart(old, new) == ["models.primary.name: needs a restart of apiserver-0, prefill-0, decode-0"]
