"""A running cluster's findings."""

from dataclasses import replace
from typing import Any

import pytest

from llmserve.cli.doctor import cluster
from llmserve.cli.status.ask import ApiAnswer
from llmserve.core.request import PairStatus
from llmserve.doctor import Finding, Status
from llmserve.overview.views import RoleView, WorkerView


def _role(stand: str = "ready", health: str = "healthy", restarts: int = 0) -> RoleView:
    return RoleView("decode-0", "decode", stand, health, 7, restarts, "", "d.log", None)


def test_roles() -> None:
    assert cluster.role(_role()).value == "healthy, pid 7"
    restarted = cluster.role(_role(restarts=2))
    assert (restarted.status, restarted.value) == (Status.WARNING, "healthy, pid 7, restarted 2x")
    ill = cluster.role(_role(health="no answer"))
    assert (ill.status, ill.advice) == (Status.PROBLEM, "no answer. Its log: d.log")
    young = cluster.role(_role("starting", ""))
    assert (young.status, young.value, young.advice) == (Status.NOTE, "not ready yet", "It is starting")


def test_a_worker_that_gets_no_requests() -> None:
    worker = replace(_worker("", 0, 0), available=False, reason="silent for 9 s")
    found = cluster.role(replace(_role(), worker=worker))
    assert (found.status, found.advice) == (
        Status.PROBLEM,
        "It gets no requests: silent for 9 s. Its log: d.log",
    )


@pytest.mark.parametrize(
    ("status", "sent_key", "finding"),
    [
        (200, True, Status.OK),
        (401, True, Status.PROBLEM),
        (401, False, Status.NOTE),
        (429, True, Status.WARNING),
        (503, True, Status.PROBLEM),
        (0, True, Status.PROBLEM),
    ],
)
def test_what_the_api_answers(status: int, sent_key: bool, finding: Status) -> None:
    found = cluster.api(ApiAnswer("apiserver-0", status, 0.5, "why", sent_key))
    assert (found.name, found.status) == ("API of apiserver-0", finding)
    assert finding is not Status.PROBLEM or "why" in found.advice


def _worker(last: str, size: int, failures: int) -> WorkerView:
    return WorkerView(
        role="decode",
        available=True,
        draining=False,
        slow=False,
        reason="",
        running_requests=0,
        waiting_requests=0,
        used_blocks=0,
        total_blocks=0,
        stored_blocks=0,
        leased_blocks=0,
        transports=("nixl", "tcp"),
        last_transport=last,
        transferred_bytes=size,
        transfer_failures=failures,
        pairs=(),
    )


def _transfers(last: str, size: int, failures: int) -> tuple[Status, str]:
    found = cluster.transfers("decode-0", _worker(last, size, failures))
    assert found.name == "KV to decode-0"
    return found.status, found.value


def test_transfers() -> None:
    assert _transfers("", 0, 0) == (Status.OK, "0.0 MiB; may use nixl, tcp")
    assert _transfers("tcp", 3 << 20, 0) == (Status.OK, "3.0 MiB, last over tcp; may use nixl, tcp")
    assert _transfers("tcp", 3 << 20, 1)[0] is Status.NOTE


def _row(transport: str, breaker: str = "closed", reason: str = "", **more: Any) -> PairStatus:
    """Measured, if it is closed."""
    fields: dict[str, Any] = {
        "peer": "prefill-0",
        "chosen": False,
        "small_seconds": 0.0,
        "bytes_per_second": 2e9 if breaker == "closed" else 0.0,
        "transfers": 0,
        "bytes": 0,
        "seconds": 0.0,
        "failures": 0,
    }
    return PairStatus(transport=transport, breaker=breaker, reason=reason, **(fields | more))


def _pair(*rows: PairStatus) -> Finding:
    (found,) = cluster.pairs("decode-0", rows)
    assert found.name == "prefill-0 > decode-0"
    return found


def test_a_pair_with_all_its_ways() -> None:
    found = _pair(_row("nixl", chosen=True, bytes_per_second=9.25e9), _row("tcp", failures=2))
    assert (found.status, found.value) == (Status.OK, "nixl 9.2 GB/s (used), tcp 2.0 GB/s")
    assert found.figures == {"gigabytes_per_second": 9.25, "failures": 2}


def test_a_pair_that_has_just_met() -> None:
    assert _pair(_row("tcp", chosen=True, bytes_per_second=0.0)).value == "tcp not measured yet (used)"


def test_a_way_that_never_worked_is_no_alarm() -> None:
    """Such as shm between two hosts."""
    found = _pair(_row("shm", "open", "shm: the peer is on another host"), _row("tcp", chosen=True))
    assert (found.status, found.value) == (Status.NOTE, "shm open, tcp 2.0 GB/s (used)")
    assert found.advice == "shm: the peer is on another host"


def test_a_way_that_broke_is_one() -> None:
    found = _pair(_row("nixl", "half-open", "timed out", bytes_per_second=9e9), _row("tcp", chosen=True))
    assert (found.status, found.value) == (Status.WARNING, "nixl half-open, tcp 2.0 GB/s (used)")
    assert found.advice == "What worked before failed. nixl: timed out"


def test_a_pair_without_a_way() -> None:
    found = _pair(_row("nixl", "open", "a"), _row("tcp", "open", "b", chosen=True))
    assert found.status is Status.PROBLEM
    assert found.advice.endswith("nixl: a; tcp: b")
    refused = _pair(_row("", "refused", "its KV has another shape"))
    assert (refused.status, refused.value) == (Status.PROBLEM, "no connection")
    assert "another shape" in refused.advice


def test_each_peer_is_a_finding_and_so_is_what_the_worker_lacks() -> None:
    rows = [
        _row("tcp", peer="prefill-0"),
        _row("tcp", peer="prefill-1"),
        _row("ucx", "unavailable", "ucx: cannot be imported", peer=""),
    ]
    found = list(cluster.pairs("decode-0", rows))
    assert [one.name for one in found] == ["prefill-0 > decode-0", "prefill-1 > decode-0", "decode-0 lacks"]
    assert (found[2].status, found[2].value) == (Status.NOTE, "ucx")
    assert found[2].advice == "ucx: cannot be imported"
    assert list(cluster.pairs("decode-0", [])) == []


def test_memory_of_the_store_that_is_not_pinned_is_said() -> None:
    reason = "0.0 of 8.0 GiB are pinned: cuda: host memory cannot be pinned"
    rows = [_row("pinned memory of kvmanager-0", "unavailable", reason, peer="")]
    [found] = cluster.pairs("decode-0", rows)
    assert (found.name, found.status) == ("decode-0 lacks", Status.NOTE)
    assert found.advice == f"pinned memory of kvmanager-0: {reason}"


def test_services_and_leases() -> None:
    assert cluster.silence("the router does not answer: late").status is Status.PROBLEM
    assert cluster.orphans(0).status is Status.OK
    assert cluster.orphans(3).value == "3 blocks"
