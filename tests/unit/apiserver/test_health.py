from dataclasses import dataclass

import pytest

from llmserve.apiserver.health import Readiness
from llmserve.rpc.gen.llmserve.v1.common_pb2 import (
    WORKER_ROLE_AGGREGATED,
    WORKER_ROLE_DECODE,
    WORKER_ROLE_PREFILL,
    WorkerInfo,
)


@dataclass
class Cluster:
    workers: list[WorkerInfo]
    connected: bool = True


PREFILL, DECODE, BOTH = (
    WorkerInfo(role=role) for role in (WORKER_ROLE_PREFILL, WORKER_ROLE_DECODE, WORKER_ROLE_AGGREGATED)
)


@pytest.mark.parametrize(
    ("workers", "disaggregated", "missing"),
    [
        ([PREFILL, DECODE], True, ""),
        ([BOTH], True, ""),
        ([BOTH], False, ""),
        ([DECODE], True, "no prefill worker is available"),
        ([PREFILL], True, "no decode worker is available"),
        ([], True, "no prefill and no decode worker is available"),
        ([], False, "no aggregated worker is available"),
    ],
)
def test_both_roles_must_be_there(workers: list[WorkerInfo], disaggregated: bool, missing: str) -> None:
    assert Readiness(Cluster(workers), disaggregated).missing() == missing


def test_without_the_router_nothing_is_known() -> None:
    cluster = Cluster([PREFILL, DECODE], connected=False)
    assert Readiness(cluster, disaggregated=True).missing() == "no session with the router"
