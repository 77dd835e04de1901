"""From the cluster's answers to what the user reads."""

from dataclasses import replace
from typing import Any

from rich.console import Console

from llmserve.cli.status.page import page
from llmserve.overview.snapshot import HEALTHY, Answers, snapshot
from llmserve.overview.views import Snapshot, as_json
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


def _text(now: Snapshot, width: int = 160, *, ways: bool = True) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(page(now, width, ways=ways))
    return captured.get()


def _rows(now: Snapshot, *, ways: bool = True) -> list[str]:
    """One space between words."""
    return [" ".join(line.split()) for line in _text(now, ways=ways).splitlines()]


def test_all_is_well() -> None:
    now = snapshot(_state(_role("decode-0")), _answers(_worker("decode-0"), decode_0=HEALTHY), 175.0)
    assert now.problems == ()
    shown = _text(now)
    for part in ("1 min 15 s", "healthy", "2+0", "5/364, 9 reusable", "tcp 3.0 MiB, 1 failed", "3 queued"):
        assert part in shown


def test_a_worker_shows_its_speed_beside_that_of_its_peers() -> None:
    speeds = [
        router_pb2.MeasuredSpeed(stage="first token", seconds=0.2, peers_seconds=0.1),
        router_pb2.MeasuredSpeed(stage="later tokens", seconds=0.02),
    ]
    now = snapshot(_state(_role("decode-0")), _answers(_worker("decode-0", speeds=speeds)), 0.0)
    assert as_json(now)["roles"][0]["worker"]["speeds"] == (
        {"stage": "first token", "seconds": 0.2, "peers_seconds": 0.1},
        {"stage": "later tokens", "seconds": 0.02, "peers_seconds": None},
    )


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
    assert f"disk (nvme) {'█' * 5 + '░' * 15} 0.50 of 2.00 GiB 7 4 64" in _rows(now)


def _adapter(name: str, running: int = 0, **more: Any) -> router_pb2.AdapterStatus:
    named = router_pb2.NamedAdapter(name=name, digest="ab" * 32, parent="m", source=f"dir:/{name}")
    return router_pb2.AdapterStatus(adapter=named, running_requests=running, **{"state": "ready", **more})


def test_adapters_are_listed_in_short() -> None:
    report = router_pb2.AdapterReport(tier=router_pb2.ADAPTER_TIER_DEVICE)
    places = [router_pb2.AdapterPlace(worker_id=name, report=report) for name in ("decode-0", "prefill-0")]
    adapters = (
        _adapter("[b]idle", state="draining"),
        _adapter("busy", 3, places=places),
        *(_adapter(f"more-{number:02}") for number in range(14)),
    )
    now = snapshot(_state(), Answers(adapters=adapters), 0.0)
    assert [row["name"] for row in now.adapters][:2] == ["[b]idle", "busy"]
    rows = _rows(now)
    first = rows.index("ADAPTER VERSION STATE WORKERS RUNNING") + 1
    assert rows[first : first + 3] == [
        "busy abababababab ready 2 device 3",
        "[b]idle abababababab draining - 0",
        "more-00 abababababab ready - 0",
    ]
    assert "and 1 more (--json has them)" in rows


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


def _shared(**tenants: int) -> Answers:
    """Requests in the queue, by tenant."""
    router = router_pb2.GetClusterStatusResponse(
        queue_limit_requests=1024,
        tenants=[
            router_pb2.TenantStatus(
                tenant=name,
                weight=4,
                queued_requests=queued,
                running_requests=1,
                dispatched_requests=10,
                refused_requests=3,
                queue_seconds=25.0,
                served_tokens=12_345,
            )
            for name, queued in tenants.items()
        ],
        budgets=[
            router_pb2.BudgetStatus(name="tokens in flight", used_ratio=1.0, refused_requests=2),
            router_pb2.BudgetStatus(name="HBM"),
            router_pb2.BudgetStatus(name="the tenant's tokens per second", refused_requests=7),
        ],
    )
    return Answers(router=router)


def test_tenants_that_wait_come_first_and_budgets_show_what_is_taken() -> None:
    now = snapshot(_state(), _shared(basic=2, gold=9), 0.0)
    lines = _rows(now)
    tenants = [line for line in lines if line.startswith(("basic", "gold"))]
    assert tenants == ["gold 4 9 1 3 2.50 s 12,345", "basic 4 2 1 3 2.50 s 12,345"]
    assert f"tokens in flight {'█' * 20} 100% 2" in lines
    assert "the tenant's tokens per second 7" in lines
    assert not [line for line in lines if line.startswith("HBM")], "it has no limit"
    assert "0 queued of at most 1024" in _text(now)


def test_of_many_tenants_the_rest_is_counted() -> None:
    shown = _text(snapshot(_state(), _shared(**{f"t{number}": number for number in range(20)}), 0.0))
    assert "and 5 more (--json has them)" in shown
    assert shown.index("t19") < shown.index("t5 ")
    assert "t4 " not in shown


def _pair(peer: str, **more: Any) -> common_pb2.TransportPair:
    fields: dict[str, Any] = {
        "transport": "shm",
        "chosen": True,
        "breaker": "closed",
        "bytes_per_second": 3.2e9,
    }
    return common_pb2.TransportPair(peer=peer, **(fields | more))


def _moving(*pairs: common_pb2.TransportPair) -> Snapshot:
    worker = _worker("decode-0")
    worker.load.pairs.extend(pairs)
    return snapshot(_state(_role("decode-0")), _answers(worker, decode_0=HEALTHY), 0.0)


def test_the_matrix_has_the_chosen_transport_and_its_speed() -> None:
    now = _moving(
        _pair("prefill-0", bytes=2 << 20, seconds=0.001),
        _pair("prefill-0", transport="tcp", chosen=False, breaker="open", reason="refused [by peer"),
        _pair("prefill-1"),
        _pair("prefill-2", bytes=2 << 10, seconds=0.01),
    )
    lines = _rows(now, ways=False)
    assert "KV FROM, TO decode-0" in lines
    assert "prefill-0 shm 2.10 GB/s, 2.0 MiB" in lines
    assert "prefill-1 shm 3.20 GB/s" in lines
    assert "prefill-2 shm 3.20 GB/s, 2.0 KiB" in lines, "that little tells no speed"
    ways = [line for line in lines if " > " in line]
    assert len(ways) == 1, "only those with trouble"
    assert "tcp open" in ways[0]
    assert "refused [by peer" in ways[0]
    assert _text(now).count(" > ") == 4


def test_a_narrow_screen_has_the_load() -> None:
    now = _moving(_pair("prefill-0"))
    wide, narrow = _text(now), _text(now, 80)
    assert "ADDRESS" in wide
    assert "ADDRESS" not in narrow
    assert "2+0" in narrow
    assert all(len(line) <= 80 for line in narrow.splitlines())
    assert all(len(line) <= 30 for line in _text(now, 30).splitlines())


def test_what_speculation_brings_has_a_line_for_each_engine_that_speculates() -> None:
    gains = [
        common_pb2.BatchGain(batch=1, proposes=True, gain=1.42, steps=90),
        common_pb2.BatchGain(batch=8, proposes=False, gain=0.9, steps=20),
        common_pb2.BatchGain(batch=16, proposes=True, steps=3),
    ]
    speaking, silent = _worker("decode-0"), _worker("decode-1")
    speaking.load.speculation.CopyFrom(
        common_pb2.Speculation(verifications=1000, proposed_tokens=3000, accepted_tokens=1500, gains=gains)
    )
    now = snapshot(_state(_role("decode-0"), _role("decode-1")), _answers(speaking, silent), 0.0)
    rows = _rows(now)
    assert "SPECULATION ACCEPTED TOKENS A STEP BY BATCH SIZE" in rows
    assert "decode-0 50% 1,500 of 3,000 2.50 1: on (1.42 x), 8: off (0.90 x), 16: on" in rows
    assert "SPECULATION" not in _text(snapshot(_state(_role("decode-1")), _answers(silent), 0.0))
