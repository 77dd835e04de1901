"""How the workloads of a cluster are, and waiting until they are as they should be."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmserve.core.errors import DeadlineExceeded, StartFailed, Unavailable
from llmserve.k8s.api import KubeApi
from llmserve.k8s.render.objects import COMPONENT_LABEL, MODEL_LABEL, Object, pod_selector, selector

# Reasons of a container that waits for nothing but time.
_PATIENT = frozenset({"ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, slots=True)
class WorkloadStatus:
    """wanted, updated, ready: numbers of pods; updated ones have the present template. done: all wanted pods
    are updated and ready, and no old ones are left. problems: what keeps pods from that, in their own words.
    most: the autoscaler's limit."""

    name: str
    role: str
    wanted: int
    updated: int
    ready: int
    restarts: int
    done: bool
    problems: tuple[str, ...]
    most: int | None = None

    @property
    def words(self) -> str:
        """The state in one line."""
        old = "" if self.updated >= self.wanted else f", {self.updated} updated"
        state = f"{self.ready}/{self.wanted} ready{old}"
        return f"{state}: {'; '.join(self.problems)}" if self.problems else state


@dataclass(frozen=True, slots=True)
class K8sSnapshot:
    cluster: str
    namespace: str
    workloads: tuple[WorkloadStatus, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        if not self.workloads:
            return (f"no cluster '{self.cluster}' is in namespace '{self.namespace}'",)
        return tuple(f"{one.name}: {one.words}" for one in self.workloads if not one.done)


def snapshot(api: KubeApi, cluster: str) -> K8sSnapshot:
    """Asks the server for the state of a cluster. Errors: ApiRefused, Unavailable."""
    found = selector(cluster)
    workloads = [
        *api.list("apps/v1", "StatefulSet", found),
        *api.list("apps/v1", "Deployment", found),
    ]
    pods = api.list("v1", "Pod", pod_selector(cluster))
    scalers = api.list("autoscaling/v2", "HorizontalPodAutoscaler", found)
    return K8sSnapshot(cluster, api.namespace, tuple(statuses(workloads, pods, scalers)))


def statuses(
    workloads: Iterable[Object], pods: Sequence[Object], scalers: Sequence[Object]
) -> Iterator[WorkloadStatus]:
    most = {one["spec"]["scaleTargetRef"]["name"]: one["spec"]["maxReplicas"] for one in scalers}
    for workload in workloads:
        role = workload["metadata"]["labels"][COMPONENT_LABEL]
        own = [pod for pod in pods if _group(pod) == _group(workload)]
        yield _status(workload, role, own, most.get(workload["metadata"]["name"]))


def _group(one: Object) -> tuple[str | None, str | None]:
    """Returns the role and the model of a workload or a pod."""
    found = one["metadata"].get("labels", {})
    return found.get(COMPONENT_LABEL), found.get(MODEL_LABEL)


def _status(workload: Object, role: str, pods: Sequence[Object], most: int | None) -> WorkloadStatus:
    status, wanted = workload.get("status", {}), int(workload["spec"].get("replicas", 1))
    current = status.get("observedGeneration", 0) >= workload["metadata"].get("generation", 0)
    updated = _updated(workload) if current else 0
    ready = int(status.get("readyReplicas", 0))
    return WorkloadStatus(
        name=workload["metadata"]["name"],
        role=role,
        wanted=wanted,
        updated=updated,
        ready=ready,
        restarts=sum(one.get("restartCount", 0) for pod in pods for one in _containers(pod)),
        done=current and updated >= wanted and ready >= wanted and int(status.get("replicas", 0)) <= wanted,
        problems=tuple(dict.fromkeys([*_given_up(workload), *_pod_problems(pods)])),
        most=most,
    )


def _updated(workload: Object) -> int:
    """The number of updated pods. A StatefulSet whose update is over reports none of them as updated."""
    status = workload.get("status", {})
    is_through = "updateRevision" in status and status.get("currentRevision") == status["updateRevision"]
    return int(status.get("replicas" if is_through else "updatedReplicas", 0))


def _given_up(workload: Object) -> Iterator[str]:
    for one in workload.get("status", {}).get("conditions", ()):
        is_stuck = one["type"] == "Progressing" and one["status"] == "False"
        if is_stuck or (one["type"] == "ReplicaFailure" and one["status"] == "True"):
            yield str(one.get("message") or one.get("reason") or one["type"])


def _pod_problems(pods: Iterable[Object]) -> Iterator[str]:
    for pod in pods:
        for reason in (*_unscheduled(pod), *_waiting(pod)):
            yield f"{pod['metadata']['name']}: {reason}"


def _unscheduled(pod: Object) -> Iterator[str]:
    for one in pod.get("status", {}).get("conditions", ()):
        if one["type"] == "PodScheduled" and one["status"] == "False":
            yield str(one.get("message") or one.get("reason", "not scheduled"))


def _waiting(pod: Object) -> Iterator[str]:
    for container in _containers(pod):
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in _PATIENT:
            text = waiting.get("message")
            yield f"{waiting['reason']}: {text}" if text else str(waiting["reason"])


def _containers(pod: Object) -> list[Object]:
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Time:
    """The real time, unless a test has its own. now: monotonic seconds."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def wait_ready(
    api: KubeApi, cluster: str, timeout_seconds: float, say: Callable[[str], None], clock: Time
) -> None:
    """Waits until all workloads are ready and reports each change of each one; asks again when the server is
    away. Errors: StartFailed with what is missing when the time is over."""
    deadline, shown = clock.now() + timeout_seconds, dict[str, str]()
    while True:
        problems: tuple[str, ...]
        try:
            now = snapshot(api, cluster)
            problems = now.problems
            words = {one.name: one.words for one in now.workloads}
        except Unavailable as error:
            problems, words = (error.message,), {}
        for name, text in words.items():
            if shown.get(name) != text:
                say(f"{name}: {text}")
        shown |= words
        if not problems:
            return
        if clock.now() >= deadline:
            missing = "\n".join(problems)
            raise StartFailed(f"not ready after {timeout_seconds:.0f} s; it goes on trying:\n{missing}")
        clock.sleep(_LOOK_SECONDS)


def wait_gone(
    api: KubeApi,
    cluster: str,
    timeout_seconds: float,
    sweep: Callable[[], object],
    say: Callable[[str], None],
    clock: Time,
) -> None:
    """Waits until no pod of the cluster is left; asks again when the server is away. sweep: deletes what a
    modelmanager, whose pod has not ended yet, has made since. Errors: DeadlineExceeded; those of sweep."""
    deadline, shown = clock.now() + timeout_seconds, -1
    while True:
        try:
            pods = api.list("v1", "Pod", pod_selector(cluster))
            if not sweep() and not pods:
                return
        except Unavailable as error:
            left = error.message
        else:
            left = ", ".join(pod["metadata"]["name"] for pod in pods)
            if len(pods) != shown:
                shown = len(pods)
                say(f"{shown} pods finish what they do")
        if clock.now() >= deadline:
            raise DeadlineExceeded(f"still there after {timeout_seconds:.0f} s: {left}")
        clock.sleep(_LOOK_SECONDS)
