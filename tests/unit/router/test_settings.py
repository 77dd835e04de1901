"""Every knob of the manifest reaches the scheduler."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from llmserve.config.schema import Manifest
from llmserve.core.adapters import AdapterTier
from llmserve.core.clock import VirtualClock
from llmserve.core.ids import ApiserverId, RequestId, TenantId
from llmserve.router.adapters.registration import AdapterWish
from llmserve.router.controller import Controller
from llmserve.router.events import Admit, RequestPlaced
from llmserve.router.placement.planner import Disaggregate, PlacementRequest
from llmserve.router.settings import DeclaredAdapters, RouterSettings
from llmserve.router.workers.worker import WorkerSpec
from llmserve.scheduler.ordering import AdapterTurns, ShortestFirst
from llmserve.scheduler.resources import ClusterLimits
from llmserve.scheduler.scheduler import Policy
from llmserve.scheduler.tenant_budgets import TenantLimit, TenantLimits


def _settings(**sections: Any) -> RouterSettings:
    base = {"kind": "LLMServe", "models": {"primary": {"source": "hub:a/b"}}}
    return RouterSettings.of(Manifest.model_validate(base | sections))


def test_the_knobs_become_the_policy() -> None:
    scheduling = {
        "max_queued_requests": 7,
        "queue_timeout_seconds": 8.0,
        "weights": [{"tenant": "gold", "weight": 4.0}],
        "srpt_bias": 2.0,
        "aging_seconds": 3.0,
        "priority_seconds": 4.0,
        "adapter_packing": 5.0,
    }
    budgets = {
        "max_tokens_in_flight": 1000,
        "hbm_gb": 2.0,
        "max_kv_io_gbps": 8.0,
        "max_requests_in_flight": 5,
        "per_tenant": {"max_requests_in_flight": 2},
        "tenants": [{"tenant": "gold", "max_requests_per_second": 1.5, "max_tokens_per_second": 100.0}],
    }
    assert _settings(scheduling=scheduling, budgets=budgets, batches={"weight": 0.25}).policy == Policy(
        max_queued_requests=7,
        queue_timeout_seconds=8.0,
        ordering=ShortestFirst(2.0, 3.0, 4.0),
        weights={TenantId("gold"): 4.0},
        adapters=AdapterTurns(packing_seconds=5.0, aging_seconds=3.0),
        background_weight=0.25,
        limits=ClusterLimits(
            max_requests_in_flight=5,
            max_tokens_in_flight=1000,
            hbm_bytes=2.0 * 2**30,
            kv_io_bytes_per_second=1e9,
            tenants=TenantLimits(TenantLimit(2), {TenantId("gold"): TenantLimit(None, 1.5, 100.0)}),
        ),
    )


def test_the_defaults_of_the_manifest_are_those_of_the_policy() -> None:
    settings = _settings()
    assert settings == RouterSettings(adapters=settings.adapters, models=settings.models, manages_models=True)


def test_models_come_and_go_where_a_supervisor_runs_them() -> None:
    settings = _settings(models=[{"source": "hub:a/b", "name": "x"}])
    assert settings.models == (("x", '{"source":"hub:a/b","name":"x"}'),)
    assert not _settings(deployment={"mode": "k8s"}).manages_models


def test_adapters_of_the_manifest_are_wishes() -> None:
    adapters = [
        {"name": "sql", "source": "dir:/a/"},
        {"name": "chat", "source": "hub:o/n", "revision": "v2", "pin": True},
        {"name": "code", "source": "s3://b/p", "prefetch": False},
    ]
    models = {"primary": {"source": "hub:a/b", "name": "m"}, "adapters": adapters}
    settings = _settings(models=models, lora={"allowed_sources": ["dir:/a"]})
    wishes = (
        AdapterWish("sql", "dir:/a", AdapterTier.DISK),
        AdapterWish("chat", "hub:o/n@v2", AdapterTier.DISK, pinned=True),
        AdapterWish("code", "s3://b/p", AdapterTier.SOURCE),
    )
    assert settings.adapters == (DeclaredAdapters("m", wishes),)
    assert settings.allowed_sources == ("dir:/a",)


def test_each_model_has_its_adapters_and_its_share() -> None:
    adapters = [{"name": "sql", "source": "dir:/a"}]
    models = [
        {"source": "hub:a/one", "share": 0.25, "adapters": adapters},
        {"source": "hub:a/two"},
    ]
    settings = _settings(models=models)
    assert settings.adapters == (
        DeclaredAdapters("one", (AdapterWish("sql", "dir:/a", AdapterTier.DISK),)),
        DeclaredAdapters("two", ()),
    )
    assert settings.policy.limits.shares == {"one": 0.25}


def test_a_reload_brings_them_to_the_router() -> None:
    controller = Controller(RouterSettings(), VirtualClock(), random.Random(1))
    wishes = (AdapterWish("sql", "dir:/a"),)
    controller.reconfigure(RouterSettings(adapters=(DeclaredAdapters("m", wishes),)))
    assert [one.wish for one in controller.adapters] == list(wishes)
    controller.reconfigure(RouterSettings(adapters=(DeclaredAdapters("m", ()),)))
    assert list(controller.adapters) == []


def test_routing_and_disaggregation_reach_the_router() -> None:
    settings = _settings(scheduling={"routing": "round_robin", "disaggregate": "never"})
    assert (settings.routing, settings.disaggregate) == ("round_robin", Disaggregate.NEVER)


@pytest.mark.parametrize("routing", ["kv_aware", "least_loaded", "round_robin"])
def test_every_routing_places(
    routing: Any, clock: VirtualClock, make_spec: Callable[..., WorkerSpec]
) -> None:
    controller = Controller(RouterSettings(routing=routing), clock, random.Random(1))
    for name in ("prefill-0", "decode-0"):
        controller.register(make_spec(name))
    session, _ = controller.open_session(ApiserverId("api"), ())
    admit = Admit(RequestId("r"), TenantId("t"), PlacementRequest("m", 10_000))
    (placed,) = controller.requests.admit(session, admit)
    assert isinstance(placed, RequestPlaced)
    assert placed.plan.prefill is not None
    assert bool(placed.plan.candidates) == (routing == "kv_aware")
