from collections.abc import Callable
from dataclasses import replace

import pytest

from llmserve.core.adapters import NO_ADAPTERS, LoraShape
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import InvalidRequest, NotFound
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.core.request import EngineLoad, WorkerRole
from llmserve.router.workers.membership import ClusterMembership
from llmserve.router.workers.worker import WorkerSpec, WorkerState
from llmserve.scheduler.models import Capacity

MakeSpec = Callable[..., WorkerSpec]
DECODE = WorkerId("decode-0")


@pytest.fixture
def membership(clock: VirtualClock) -> ClusterMembership:
    return ClusterMembership(clock, expiry_seconds=4.0)


def _decoders(membership: ClusterMembership) -> list[str]:
    return [m.spec.worker_id for m in membership.available("m", WorkerRole.DECODE)]


def test_silence_loses_a_worker_and_a_heartbeat_brings_it_back(
    membership: ClusterMembership, clock: VirtualClock, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("decode-0"))
    clock.advance(3.0)
    membership.heartbeat(DECODE, 1, EngineLoad(waiting_requests=3))
    clock.advance(3.9)
    assert membership.expire() == []
    version = membership.version
    clock.advance(0.1)
    (lost,) = membership.expire()
    assert (lost.state, lost.load.waiting_requests) == (WorkerState.LOST, 3)
    assert "4 s" in lost.reason
    assert _decoders(membership) == []
    assert membership.version > version
    version = membership.version
    membership.heartbeat(DECODE, 1, EngineLoad())
    assert _decoders(membership) == ["decode-0"]
    assert membership.version > version


def test_expiry_is_never_late(
    membership: ClusterMembership, clock: VirtualClock, make_spec: MakeSpec
) -> None:
    assert membership.next_expiry() is None
    membership.register(make_spec("decode-0"))
    clock.advance(1.0)
    membership.register(make_spec("decode-1"))
    for _ in range(20):
        due = membership.next_expiry()
        assert due is not None
        assert due <= min(m.heard_at + 4.0 for m in membership if m.registered)
        clock.advance(0.5)
        membership.expire()
        membership.heartbeat(DECODE, 1, EngineLoad())
        membership.heartbeat(WorkerId("decode-1"), 1, EngineLoad())


def test_the_next_expiry_is_that_of_the_worker_that_is_silent_for_longest(
    membership: ClusterMembership, clock: VirtualClock, make_spec: MakeSpec
) -> None:
    for name in ("decode-0", "decode-1", "decode-2"):
        membership.register(make_spec(name))
        clock.advance(1.0)
    assert membership.next_expiry() == clock.now() + 1.0
    clock.advance(1.0)
    assert [m.spec.worker_id for m in membership.expire()] == ["decode-0"]
    assert membership.next_expiry() == clock.now() + 1.0


def test_a_worker_that_registers_again_has_been_heard(
    membership: ClusterMembership, clock: VirtualClock, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("decode-0"))
    clock.advance(3.0)
    membership.register(make_spec("decode-0"))
    clock.advance(3.9)
    assert membership.expire() == []


def test_the_version_counts_how_often_other_workers_are_registered(
    membership: ClusterMembership, clock: VirtualClock, make_spec: MakeSpec
) -> None:
    versions = [membership.version]
    for name in ("decode-0", "decode-1"):
        membership.register(make_spec(name))
        versions.append(membership.version)
    membership.heartbeat(DECODE, 1, EngineLoad())
    membership.deregister(DECODE, 1)
    clock.advance(4.0)
    membership.expire()
    assert [*versions, membership.version] == [0, 1, 2, 4]


def test_decode_workers_fetch_kv_from_the_prefill_workers_of_their_model(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    for name in ("prefill-0", "prefill-1", "decode-0", "aggregated-0"):
        membership.register(make_spec(name))
    membership.register(make_spec("prefill-2", model="other"))
    membership.suspect(WorkerId("prefill-1"), 1, "it still has what is to be fetched")

    def sources(name: str) -> list[str]:
        return [m.spec.worker_id for m in membership.kv_sources(WorkerId(name))]

    assert sources("decode-0") == ["prefill-0", "prefill-1"]
    assert [sources(name) for name in ("prefill-0", "aggregated-0", "unknown")] == [[], [], []]


def test_one_that_came_back_expires_as_soon_as_any(
    membership: ClusterMembership, clock: VirtualClock, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("decode-0"))
    for _ in range(2):
        clock.advance(4.0)
        assert len(membership.expire()) == 1
        membership.heartbeat(DECODE, 1, EngineLoad())


def test_the_long_lost_are_forgotten(
    membership: ClusterMembership, clock: VirtualClock, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("decode-0"))
    for _ in range(100):
        clock.advance(4.0)
        membership.expire()
    assert len(membership) == 0
    assert membership.next_expiry() is None
    with pytest.raises(NotFound):
        membership.heartbeat(DECODE, 1, EngineLoad())


def test_a_lost_worker_is_named_for_sixty_expiries(
    membership: ClusterMembership, clock: VirtualClock, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("decode-0"))
    clock.advance(4.0)
    membership.expire()
    assert membership.next_expiry() == clock.now() + 59 * 4.0
    clock.advance(59 * 4.0 - 0.5)
    membership.expire()
    assert len(membership) == 1
    clock.advance(0.5)
    membership.expire()
    assert len(membership) == 0


def test_a_suspect_is_not_used_until_it_is_heard(membership: ClusterMembership, make_spec: MakeSpec) -> None:
    membership.register(make_spec("decode-0"))
    version = membership.version
    membership.suspect(DECODE, 1, "reset by peer")
    assert _decoders(membership) == []
    assert [m.reason for m in membership.registered("m", WorkerRole.DECODE)] == ["reset by peer"]
    membership.heartbeat(DECODE, 1, EngineLoad())
    assert _decoders(membership) == ["decode-0"]
    assert membership.version == version  # it was in the cluster all along


def test_an_old_failure_says_nothing_of_a_new_incarnation(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("decode-0", epoch=1))
    membership.register(make_spec("decode-0", epoch=2))
    membership.suspect(DECODE, 1, "reset by peer")
    membership.deregister(DECODE, 1)
    assert _decoders(membership) == ["decode-0"]
    membership.deregister(DECODE, 2)
    assert _decoders(membership) == []


def test_a_newer_epoch_replaces_and_starts_empty(membership: ClusterMembership, make_spec: MakeSpec) -> None:
    membership.register(make_spec("decode-0", epoch=1))
    old = membership.available("m", WorkerRole.DECODE)[0]
    old.slots.take()
    membership.register(make_spec("decode-0", epoch=2))
    new = membership.available("m", WorkerRole.DECODE)[0]
    assert new.slots.placed_requests == 0
    with pytest.raises(NotFound, match="epoch 1"):
        membership.heartbeat(DECODE, 1, EngineLoad())
    with pytest.raises(InvalidRequest, match="older than 2"):
        membership.register(make_spec("decode-0", epoch=1))


def test_registering_again_keeps_the_count(membership: ClusterMembership, make_spec: MakeSpec) -> None:
    slots = membership.slots(DECODE, 1)
    slots.take()  # an apiserver told of it before the worker registered
    membership.register(make_spec("decode-0"))
    membership.register(replace(make_spec("decode-0"), address="elsewhere:1"))
    (member,) = membership.available("m", WorkerRole.DECODE)
    assert member.slots.placed_requests == 1
    assert member.spec.address == "elsewhere:1"


def test_refuses_kv_that_does_not_fit(
    membership: ClusterMembership, clock: VirtualClock, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("prefill-0", layout="LBHNC/vec"))
    membership.register(make_spec("prefill-1", layout="LBHNC/amx"))  # prefill workers never meet each other
    membership.register(make_spec("aggregated-0", layout="LBHNC"))  # hands nothing over
    with pytest.raises(
        InvalidRequest, match=r"decode-0.*prefill-1.*layout 'LBHNC/vec' differs from 'LBHNC/amx'"
    ):
        membership.register(make_spec("decode-0", layout="LBHNC/vec"))
    membership.register(make_spec("decode-0", layout="LBHNC/vec", model="another"))
    clock.advance(5)
    membership.expire()
    membership.register(make_spec("decode-0", epoch=2, layout="LBNHC/kv"))  # those it did not fit are lost


@pytest.mark.parametrize(
    "shape",
    [
        {"model_revision": "edited"},
        {"computation": "float16 up to 2048 tokens"},
        {"draft_revision": "another"},
    ],
)
@pytest.mark.parametrize("size", [16, 32])
def test_refuses_kv_of_another_model_or_computation(
    membership: ClusterMembership, make_spec: MakeSpec, shape: dict[str, str], size: int
) -> None:
    membership.register(make_spec("prefill-0"))
    with pytest.raises(InvalidRequest, match=next(iter(shape))):
        membership.register(make_spec("decode-0", block_size_tokens=size, **shape))


@pytest.mark.parametrize(
    "lora", [NO_ADAPTERS, LoraShape(2, 16), LoraShape(4, 8), LoraShape(4, 16, ("q_proj",))]
)
def test_refuses_workers_that_cannot_run_the_same_adapters(
    membership: ClusterMembership, make_spec: MakeSpec, lora: LoraShape
) -> None:
    prefill, decode = (replace(make_spec(name), lora=LoraShape(4, 16)) for name in ("prefill-0", "decode-0"))
    membership.register(prefill)
    with pytest.raises(
        InvalidRequest, match=r"decode-0 and prefill worker prefill-0 .* lora .* differs from"
    ):
        membership.register(replace(decode, lora=lora))
    membership.register(decode)


@pytest.mark.parametrize("sizes", [{"block_size_tokens": 32}, {"tensor_parallel": 2}])
def test_kv_of_another_size_fits(
    membership: ClusterMembership, make_spec: MakeSpec, sizes: dict[str, int]
) -> None:
    membership.register(make_spec("prefill-0"))
    membership.register(make_spec("decode-0", **sizes, block_bytes=8192))
    with pytest.raises(InvalidRequest, match="block_bytes 8192 differs from 4096"):
        membership.register(make_spec("decode-1", block_bytes=8192))
    with pytest.raises(InvalidRequest, match="pipeline_parallel 2 differs from 1"):
        membership.register(make_spec("decode-1", **sizes, pipeline_parallel=2))


@pytest.mark.parametrize(("field", "value"), [("worker_id", ""), ("address", ""), ("max_concurrency", 0)])
def test_refuses_nonsense(
    membership: ClusterMembership, make_spec: MakeSpec, field: str, value: object
) -> None:
    with pytest.raises(InvalidRequest, match=field):
        membership.register(replace(make_spec("decode-0"), **{field: value}))  # type: ignore[arg-type]
    assert len(membership) == 0


def test_prefill_workers_count_as_capacity_where_there_are_no_others(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    def requests() -> dict[str, int]:
        return {model: one.requests for model, one in membership.capacities().items()}

    assert requests() == {}
    membership.register(make_spec("prefill-0", slots=2))
    assert requests() == {"m": 2}
    membership.register(make_spec("decode-0", slots=5))
    membership.register(make_spec("decode-1", slots=4, model="other"))
    assert requests() == {"m": 5, "other": 4}
    membership.deregister(DECODE, 1)
    assert requests() == {"m": 2, "other": 4}
    membership.register(make_spec("aggregated-0", slots=3))
    assert requests() == {"m": 3, "other": 4}


def test_capacity_is_what_the_registered_workers_of_a_model_have_together(
    membership: ClusterMembership, clock: VirtualClock, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("decode-0", slots=5))
    membership.register(make_spec("aggregated-0", slots=3, block_bytes=64, model="small"))
    membership.register(make_spec("aggregated-1", slots=4, block_bytes=64, model="small"))
    small = Capacity(7, 4.0, hands_over=False, widest_engine=4)
    assert membership.capacities() == {
        "m": Capacity(5, 256.0, hands_over=False, widest_engine=5),
        "small": small,
    }
    membership.register(make_spec("prefill-0", slots=9))
    assert membership.capacities() == {
        "m": Capacity(5, 256.0, hands_over=True, widest_engine=5),
        "small": small,
    }
    clock.advance(5.0)
    membership.expire()
    assert membership.capacities() == {}


def test_a_token_of_kv_is_a_part_of_a_block_on_all_ranks(make_spec: MakeSpec) -> None:
    assert make_spec("decode-0", tensor_parallel=2).kv_shape.bytes_per_token == 2 * 4096 / 16
    assert make_spec("decode-0", block_size_tokens=0).kv_shape.bytes_per_token == 0.0, "unknown"


def test_interruptions_are_ends_that_nobody_announced(
    membership: ClusterMembership, clock: VirtualClock, make_spec: MakeSpec
) -> None:
    def interruptions() -> int:
        (member,) = membership
        return member.interruptions

    membership.register(make_spec("decode-0"))
    membership.suspect(DECODE, 1, "broken")
    membership.suspect(DECODE, 1, "broken")
    assert interruptions() == 1
    clock.advance(4.0)
    membership.expire()
    assert interruptions() == 1, "it was suspect before it was silent"
    membership.heartbeat(DECODE, 1, EngineLoad())
    clock.advance(4.0)
    membership.expire()
    assert interruptions() == 2
    membership.register(make_spec("decode-0", epoch=2))
    assert interruptions() == 2, "the older one was lost before"
    membership.register(make_spec("decode-0", epoch=3))
    assert interruptions() == 3
    membership.deregister(DECODE, 3)
    membership.register(make_spec("decode-0", epoch=4))
    assert interruptions() == 0


def test_a_worker_whose_engine_does_not_answer_gets_nothing_until_it_does(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("decode-0"))
    for _ in range(3):
        membership.heartbeat(DECODE, 1, EngineLoad(stalled=True))
        assert _decoders(membership) == []
    (member,) = membership
    assert (member.state, member.reason) == (WorkerState.SUSPECT, "its engine does not answer")
    assert member.interruptions == 1
    membership.heartbeat(DECODE, 1, EngineLoad())
    assert _decoders(membership) == ["decode-0"]


def test_a_worker_that_runs_one_request_at_once_is_one(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    membership.register(replace(make_spec("decode-0"), max_concurrency=1))
    assert len(membership) == 1


def test_a_worker_that_lacks_something_takes_no_requests_until_it_has_it(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("decode-0"))
    membership.hold_back(WorkerId("unknown"), "it fetches")
    names = []
    for lacks in ("", "it fetches", "it fetches", ""):
        membership.hold_back(WorkerId("decode-0"), lacks)
        names.append([m.reason for m in membership.available("m", WorkerRole.DECODE)])
    assert names == [[""], [], [], [""]]


def test_what_a_suspect_lacks_counts_when_it_is_heard_again(
    membership: ClusterMembership, make_spec: MakeSpec
) -> None:
    membership.register(make_spec("decode-0"))
    membership.suspect(WorkerId("decode-0"), 1, "broken")
    membership.hold_back(WorkerId("decode-0"), "it fetches")
    (member,) = membership
    assert (member.state, member.reason) == (WorkerState.SUSPECT, "broken")
    membership.heartbeat(WorkerId("decode-0"), 1, EngineLoad())
    assert (member.state, member.reason) == (WorkerState.FETCHING, "it fetches")


def test_versions_are_ruled_out_of_known_workers(membership: ClusterMembership, make_spec: MakeSpec) -> None:
    membership.register(make_spec("decode-0"))
    (member,) = membership
    for name in ("unknown", "decode-0"):
        membership.rule_out(WorkerId(name), AdapterDigest("a"), out=True)
    assert member.ruled_out == {"a"}
    membership.rule_out(WorkerId("decode-0"), AdapterDigest("a"), out=False)
    assert member.ruled_out == set()
