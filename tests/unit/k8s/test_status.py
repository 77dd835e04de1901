"""What is said of workloads and their pods."""

from typing import cast

import pytest

from llmserve.config.plan_types import ProcessRole
from llmserve.core.errors import DeadlineExceeded, Unavailable
from llmserve.k8s.api import KubeApi
from llmserve.k8s.render.objects import Object, labels
from llmserve.k8s.status import Time, statuses, wait_gone


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


class Server:
    """What it answers when it is asked for pods, in turn; the last one again and again."""

    def __init__(self, *answers: list[Object] | Unavailable) -> None:
        self._answers = list(answers)

    def list(self, version: str, kind: str, selector: str) -> list[Object]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Unavailable):
            raise answer
        return answer


def waited(server: Server) -> list[str]:
    now, said = 0.0, list[str]()

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    api = cast("KubeApi", server)
    wait_gone(api, "demo", 60.0, list, said.append, Time(lambda: now, sleep))
    return said


AWAY = Unavailable("the server does not answer")


def test_who_waits_for_the_end_asks_again_when_the_server_is_away() -> None:
    pod = _pod("a", 0, ProcessRole.ROUTER)
    assert waited(Server([pod], AWAY, [pod], [])) == ["1 pods finish what they do"]


@pytest.mark.parametrize(
    ("answer", "why"), [(AWAY, AWAY.message), ([_pod("a", 0, ProcessRole.ROUTER)], "60 s: a")]
)
def test_who_waits_for_the_end_says_what_is_missing(answer: list[Object] | Unavailable, why: str) -> None:
    with pytest.raises(DeadlineExceeded, match=why):
        waited(Server(answer))
