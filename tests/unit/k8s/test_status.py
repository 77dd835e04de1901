"""What is said of workloads and their pods."""

from llmserve.config.plan_types import ProcessRole
from llmserve.k8s.render.objects import Object, labels
from llmserve.k8s.status import statuses


def _workload(name: str, role: ProcessRole, model: str = "") -> Object:
    status = {"observedGeneration": 1, "readyReplicas": 1, "updatedReplicas": 1, "replicas": 1}
    metadata = {"name": name, "generation": 1, "labels": labels("demo", role, model)}
    return {"metadata": metadata, "spec": {"replicas": 1}, "status": status}


def _pod(name: str, restarts: int, role: ProcessRole, model: str = "") -> Object:
    states = [{"restartCount": restarts, "state": {}}]
    return {
        "metadata": {"name": name, "labels": labels("demo", role, model)},
        "status": {"containerStatuses": states},
    }


def test_pods_of_a_role_belong_to_the_workload_of_their_model() -> None:
    decode = ProcessRole.DECODE
    workloads = [
        _workload("demo-large-decode", decode, "large"),
        _workload("demo-small-decode", decode, "small"),
        _workload("demo-router", ProcessRole.ROUTER),
    ]
    pods = [
        _pod("a", 1, decode, "large"),
        _pod("b", 2, decode, "small"),
        _pod("c", 4, decode, "small"),
        _pod("d", 8, ProcessRole.ROUTER),
    ]
    found = {one.name: one.restarts for one in statuses(workloads, pods, [])}
    assert found == {"demo-large-decode": 1, "demo-small-decode": 6, "demo-router": 8}
