"""From the cluster's answers to what the user reads."""

from dataclasses import replace
from typing import Any

from rich.console import Console

from llmserve.cli.ask import HEALTHY, Answers
from llmserve.cli.snapshot import Snapshot, snapshot
from llmserve.cli.status import page
from llmserve.rpc.gen.llmserve.v1 import common_pb2, kvmanager_pb2, router_pb2
from llmserve.runner.state import ClusterState


def _role(name: str, **more: Any) -> dict[str, Any]:
    role = {
        "name": name,
        "role": name.partition("-")[0],
        "pid": 7,
        "stand": "ready",
        "detail": "",
        "restarts": 0,
        "listen": f"{name}:1",
        "http": None,
        "routers": [],
        "kvmanagers": [],
        "log": f"{name}.log",
    }
    return role | more


def _state(*roles: dict[str, Any]) -> ClusterState:
    return ClusterState(
        cluster_id="c",
        name="mine",
        manifest="m.yaml",
        pid=1,
        pid_started_ticks=1,
        started_at=100.0,
        stand="ready",
        base_urls=["http://h:1"],
        model="m",
        roles=list(roles),
    )


def _worker(name: str, **more: Any) -> router_pb2.WorkerStatus:
    info = common_pb2.WorkerInfo(
        worker_id=name, role=common_pb2.WORKER_ROLE_DECODE, total_blocks=364, transports=["nixl", "tcp"]
    )
    load = common_pb2.WorkerLoad(
        running_requests=2,
        used_blocks=5,
        transferred_bytes=3 << 20,
        transfer_failures=1,
        last_transport="tcp",
    )
    return router_pb2.WorkerStatus(info=info, load=load, **{"available": True, **more})


def _answers(*workers: router_pb2.WorkerStatus, orphan_blocks: int = 0, **healths: str) -> Answers:
    stored = [
        kvmanager_pb2.WorkerKvStatus(worker_id=worker.info.worker_id, device_blocks=9) for worker in workers
    ]
    return Answers(
        {name.replace("_", "-"): health for name, health in healths.items()},
        router_pb2.GetClusterStatusResponse(workers=workers, running_requests=2, queued_requests=3),
        kvmanager_pb2.GetKvStatusResponse(workers=stored, directory_blocks=9, orphan_blocks=orphan_blocks),
    )


def _text(now: Snapshot) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(page(now))
    return captured.get()


def test_all_is_well() -> None:
    now = snapshot(_state(_role("decode-0")), _answers(_worker("decode-0"), decode_0=HEALTHY), 175.0)
    assert now.problems == ()
    shown = _text(now)
    for part in ("1 min 15 s", "healthy", "2+0", "5/364, 9 reusable", "tcp 3.0 MiB, 1 failed", "3 queued"):
        assert part in shown


def test_each_storage_class_has_a_line() -> None:
    tier = kvmanager_pb2.TierStatus(
        name="disk",
        kind="nvme",
        blocks=7,
        used_bytes=1 << 29,
        capacity_bytes=2 << 30,
        hit_blocks=4,
        hit_tokens=64,
    )
    now = snapshot(_state(), Answers(kvmanager=kvmanager_pb2.GetKvStatusResponse(tiers=[tier])), 0.0)
    assert now.tiers[0].name == "disk"
    assert "KV store disk (nvme): 0.50 of 2.00 GiB in 7 blocks, 4 blocks hit (64 tokens)" in _text(now)


def test_each_trouble_is_named() -> None:
    roles = (
        _role("decode-0"),
        _role("prefill-0", stand="restarting", detail="ended (killed by signal 9); again in 0.5 s"),
        _role("router-0"),
    )
    worker = _worker("decode-0", available=False, reason="draining")
    answers = _answers(worker, orphan_blocks=4, decode_0=HEALTHY, router_0="no answer (unavailable)")
    problems = "\n".join(snapshot(_state(*roles), answers, 0.0).problems)
    for part in ("decode-0 gets no requests: draining", "prefill-0 is restarting", "killed by signal 9"):
        assert part in problems
    for part in ("router-0: no answer", "4 KV blocks are orphaned"):
        assert part in problems


def test_text_of_the_cluster_is_no_markup() -> None:
    now = snapshot(_state(_role("decode-0")), _answers(decode_0="[red]odd[/"), 0.0)
    assert "[red]odd[/" in _text(now)


def _indexed(**fields: Any) -> Snapshot:
    answers = _answers(_worker("decode-0"), decode_0=HEALTHY)
    answers.router.prefix_index.MergeFrom(router_pb2.PrefixIndexStatus(blocks=9, **fields))
    return snapshot(_state(_role("decode-0")), answers, 175.0)


def test_the_prefix_index_is_shown() -> None:
    now = _indexed(followed=["h:2"], proof="matches")
    assert now.problems == ()
    assert "Prefix index: 9 blocks, prompts are found again" in _text(now)
    assert "Prefix index" not in _text(_indexed())  # of a router without KV managers


def test_prompts_that_are_never_found_are_a_problem_and_so_is_a_kvmanager_that_is_not_followed() -> None:
    now = _indexed(
        followed=["h:2"], away=["h:3"], proof="differs", problem="decode-0 reports 9 KV blocks, but"
    )
    assert now.problems == (
        "the router does not follow the kvmanager at h:3: what it has is not known",
        "requests are not routed to what is cached: decode-0 reports 9 KV blocks, but",
    )
    assert "prompts are NOT found again" in _text(now)


def test_which_router_leads() -> None:
    one, two = _role("router-0"), _role("router-1")
    answers = replace(_answers(router_0=HEALTHY, router_1=HEALTHY), leading=two["listen"])
    now = snapshot(_state(one, two), answers, 175.0)
    assert [role.leads for role in now.roles] == [False, True]
    shown = [line.split() for line in _text(now).splitlines() if line.startswith("router-")]
    assert [line[1:3] for line in shown] == [["healthy,", "stands"], ["healthy,", "leads"]]
    alone = snapshot(_state(one), replace(answers, leading=one["listen"]), 175.0)
    assert "leads" not in _text(alone)
