"""Every method of the services is in the table of those who may call it."""

import pytest

from llmserve.core.errors import Forbidden
from llmserve.rpc.audit import is_administrative
from llmserve.rpc.callers import CallerIdentity, CallerRole
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, router_pb2, worker_pb2
from llmserve.rpc.permissions import check_permission, is_open

METHODS = [
    f"/{service.full_name}/{method.name}"
    for module in (router_pb2, worker_pb2, kvmanager_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def callers(method: str) -> set[str]:
    found = set()
    for role in CallerRole:
        try:
            check_permission(CallerIdentity(role, "x"), method)
        except Forbidden:
            continue
        found.add(role.value)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_for_somebody_and_for_nobody_else(method: str) -> None:
    assert 0 < len(callers(method)) < len(CallerRole)
    assert not is_open(method)


@pytest.mark.parametrize(
    ("method", "roles"),
    [
        ("Router/Register", {"worker"}),
        ("Router/Heartbeat", {"worker"}),
        ("Router/Session", {"apiserver"}),
        ("Router/Drain", {"operator", "apiserver"}),
        ("Router/Promise", {"router"}),
        ("Worker/Session", {"apiserver"}),
        ("KVManager/DropAdapter", {"router"}),
        ("KVManager/EvictBlocks", {"operator"}),
        ("Router/Reload", {"operator", "apiserver"}),
        ("KVManager/PreparePrompt", {"worker"}),
    ],
)
def test_who_may_call(method: str, roles: set[str]) -> None:
    assert callers(f"/llmserve.v1.{method}") == roles


# What operators may call that changes nothing, or that the supervisor of `llmserve up` calls by itself.
READING = {
    *("Router/GetClusterStatus", "Router/Explain", "Router/ListAdapters", "Router/ListModels"),
    *("Router/FollowModels", "Worker/GetWorkerStatus"),
    *("KVManager/Lookup", "KVManager/GetKvStatus", "KVManager/ListBlocks"),
}


@pytest.mark.parametrize("method", METHODS)
def test_what_an_operator_changes_is_in_the_audit_log(method: str) -> None:
    reads = method.removeprefix("/llmserve.v1.") in READING
    assert is_administrative(method) == ("operator" in callers(method) and not reads)


def test_what_is_not_in_the_table_is_for_nobody() -> None:
    assert callers("/llmserve.v1.Router/Other") == set()


def test_probes_are_open_and_reflection_is_for_operators() -> None:
    assert is_open("/grpc.health.v1.Health/Check")
    assert callers("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo") == {"operator"}


def test_the_error_says_who_and_what() -> None:
    with pytest.raises(Forbidden, match=r"^worker decode-0 may not call /llmserve.v1.Router/Drain$"):
        check_permission(CallerIdentity(CallerRole.WORKER, "decode-0"), "/llmserve.v1.Router/Drain")
