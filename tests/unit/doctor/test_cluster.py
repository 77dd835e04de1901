"""A running cluster's findings."""

from llmserve.doctor import cluster
from llmserve.doctor.cluster import RoleFacts, TransferFacts
from llmserve.doctor.finding import Status


def test_roles() -> None:
    assert cluster.role(RoleFacts("router-0", 7, 0, "r.log", "")).value == "healthy, pid 7"
    restarted = cluster.role(RoleFacts("router-0", 7, 2, "r.log", ""))
    assert (restarted.status, restarted.value) == (Status.WARNING, "healthy, pid 7, restarted 2x")
    ill = cluster.role(RoleFacts("router-0", 7, 0, "r.log", "no answer"))
    assert (ill.status, ill.advice) == (Status.PROBLEM, "no answer. Its log: r.log")


def _transfers(last: str, size: int, failures: int) -> tuple[Status, str]:
    found = cluster.transfers(TransferFacts("decode-0", ("nixl", "tcp"), last, size, failures))
    assert found.name == "KV to decode-0"
    return found.status, found.value


def test_transfers() -> None:
    assert _transfers("", 0, 0) == (Status.OK, "none yet; may use nixl, tcp")
    assert _transfers("nixl", 3 << 20, 0) == (Status.OK, "3.0 MiB, last over nixl; may use nixl, tcp")
    assert _transfers("tcp", 3 << 20, 0)[0] is Status.NOTE
    assert _transfers("tcp", 3 << 20, 1)[0] is Status.WARNING
    assert _transfers("", 0, 2) == (Status.WARNING, "0.0 MiB, last over none; may use nixl, tcp")


def test_services_and_leases() -> None:
    assert cluster.silence("the router does not answer: late").status is Status.PROBLEM
    assert cluster.orphans(0).status is Status.OK
    assert cluster.orphans(3).value == "3 blocks"
