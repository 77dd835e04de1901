"""Waits until a cluster is as it was asked to be, or gone, and says what it waits for."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from llmserve.core.errors import DeadlineExceeded, StartFailed, Unavailable
from llmserve.k8s.api import KubeApi
from llmserve.k8s.render.names import pod_selector
from llmserve.k8s.status import snapshot

_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Time:
    """The real one, unless a test has its own. now: seconds, monotonic."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def wait_ready(
    api: KubeApi, cluster: str, timeout_seconds: float, say: Callable[[str], None], clock: Time
) -> None:
    """Says each change of each workload. A server that is away for a moment is asked again.
    Errors: StartFailed with what is missing when the time is over."""
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
    api: KubeApi, cluster: str, timeout_seconds: float, say: Callable[[str], None], clock: Time
) -> None:
    """Until no pod of it is left. Errors: DeadlineExceeded."""
    deadline, shown = clock.now() + timeout_seconds, -1
    while pods := api.list("v1", "Pod", pod_selector(cluster)):
        if len(pods) != shown:
            shown = len(pods)
            say(f"{shown} pods finish what they do")
        if clock.now() >= deadline:
            names = ", ".join(pod["metadata"]["name"] for pod in pods)
            raise DeadlineExceeded(f"still there after {timeout_seconds:.0f} s: {names}")
        clock.sleep(_LOOK_SECONDS)
