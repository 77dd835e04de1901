"""`state`, and what needs it (several routers, kept responses): what is accepted, refused with its line and
path, and planned."""

import itertools

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.plan import plan_local
from llmserve.config.schema import Manifest
from llmserve.core.errors import ManifestError

HEAD = "kind: LLMServe\nmodels: {primary: {source: hub:org/name}}\n"
REDIS = "state: {backend: redis, redis: {url: 'redis://h:6379/0'}}\n"
TWO = "deployment: {replicas: {router: 2}}\n"
KEPT = "api: {response_store: {enabled: true}}\n"


def parsed(text: str) -> Manifest:
    return parse_manifest(HEAD + text, "m.yaml")


def test_two_routers() -> None:
    manifest = parsed("state: {backend: redis, redis: {url: 'rediss://user@h:1', password_env: PW}}\n" + TWO)
    assert manifest.state.redis is not None
    assert (manifest.state.redis.url, manifest.state.redis.password_env) == ("rediss://user@h:1", "PW")


def test_redis_for_one_router() -> None:
    assert parsed(REDIS).deployment.replicas.router == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "deployment: {mode: k8s, k8s: {max_replicas: {apiserver: null}}}\n",
        REDIS + "deployment: {replicas: {apiserver: 2}}\n",
        REDIS + "deployment: {mode: k8s}\n",
    ],
)
def test_responses_are_kept_by_one_apiserver_or_in_redis(text: str) -> None:
    assert parsed(KEPT + text).api.response_store.enabled


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TWO, "m.yaml:3: deployment.replicas.router: several routers need state.backend: redis"),
        (
            REDIS + "deployment: {replicas: {router: 2}, local: {single_process: true}}\n",
            "m.yaml:4: deployment.replicas.router: deployment.local.single_process has exactly one router",
        ),
        ("state: {backend: redis}\n", "m.yaml:3: state.backend: needs state.redis.url"),
        (
            "state: {redis: {url: 'redis://h:1'}}\n",
            "m.yaml:3: state.redis: has no effect without backend: redis",
        ),
        (
            "state: {backend: redis, redis: {url: 'redis://user:hush@h:1'}}\n",
            "m.yaml:3: state.redis.url: has a password in it; set state.redis.password_env instead",
        ),
        (
            "state: {backend: redis, redis: {url: 'redis://h:1?password=hush'}}\n",
            "m.yaml:3: state.redis.url:",
        ),
        ("state: {backend: redis, redis: {url: 'http://user:hush@h'}}\n", "m.yaml:3: state.redis.url:"),
        (
            KEPT + "deployment: {replicas: {apiserver: 2}}\n",
            "m.yaml:3: api.response_store.enabled: 2 apiservers share what they keep in Redis",
        ),
        (
            KEPT + "deployment: {mode: k8s}\n",  # up to as many as the autoscaler may have
            "m.yaml:3: api.response_store.enabled: 4 apiservers share what they keep in Redis",
        ),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    with pytest.raises(ManifestError) as failed:
        parsed(text)
    assert failed.value.message.startswith(told)
    assert "hush" not in failed.value.message


def test_the_plan_tells_everybody_of_all_routers() -> None:
    plan = plan_local(parsed(REDIS + TWO), (0, 1), itertools.count(5000).__next__)
    by_name = {process.name: process for process in plan.processes}
    first, second = by_name["router-0"], by_name["router-1"]
    assert (first.routers, second.routers) == ((second.listen,), (first.listen,))
    assert f"--router {second.listen} " in " ".join(first.arguments("m.yaml", "run")) + " "
    for name in ("prefill-0", "decode-0", "apiserver-0"):
        assert by_name[name].routers == (first.listen, second.listen)
        assert {"router-0", "router-1"} <= set(by_name[name].after)
