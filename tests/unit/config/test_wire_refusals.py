"""Which keys about TLS go together."""

from typing import Any

import pytest
import yaml

from llmserve.config.load import parse_manifest
from llmserve.config.plan import plan_local
from llmserve.config.schema import Manifest
from llmserve.core.errors import ManifestError

TLS = {"certificate": "a.crt", "key": "a.key"}


def parsed(mode: str = "local", url: str = "rediss://r:1/0", **of: Any) -> Manifest:
    sections: dict[str, Any] = {
        "models": {"primary": {"source": "a/b"}},
        "deployment": {"mode": mode},
        "security": {name: value for name, value in of.items() if name in ("tls", "mtls")},
    }
    if "order" in of:
        sections["transfer"] = {"engine_order": of["order"]}
    if "metrics" in of:
        sections["observability"] = {"metrics": of["metrics"]}
    if "ca" in of:
        sections["state"] = {"backend": "redis", "redis": {"url": url, "ca": of["ca"]}}
    return parse_manifest(yaml.safe_dump({"kind": "LLMServe", "spec": sections}), "m.yaml")


@pytest.mark.parametrize(
    "given",
    [
        {"mtls": {"directory": "certs"}},
        {"mtls": {}, "mode": "k8s"},
        {"mtls": {"plain_transports": True}, "mode": "k8s", "order": ["nixl"]},
        {"mtls": {}, "mode": "k8s", "order": []},
        {"tls": TLS},
        {"ca": "/etc/ca.crt"},
    ],
)
def test_right_ones(given: dict[str, Any]) -> None:
    parsed(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mtls": {}}, "security.mtls.directory"),
        ({"mtls": {}, "mode": "k8s", "order": ["ucx"]}, "transfer.engine_order: has ucx, which encrypt noth"),
        ({"mtls": {}, "mode": "k8s", "metrics": False}, "observability.metrics: must be on"),
        ({"tls": TLS, "mode": "k8s"}, "security.tls: is not available on Kubernetes"),
        ({"ca": "/a", "url": "redis://r:1/0"}, "state.redis.ca: has no effect without TLS"),
        ({"ca": "/a", "mode": "k8s"}, "state.redis.ca: is not available on Kubernetes"),
        ({"tls": {"certificate": "a.crt"}}, "security.tls.key"),
    ],
)
def test_wrong_ones(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        parsed(**given)


def test_addresses_are_those_of_https() -> None:
    plan = plan_local(parsed(tls=TLS), (), iter(range(1000, 2000)).__next__)
    assert {url.partition(":")[0] for url in plan.base_urls} == {"https"}
    assert {process.https for process in plan.processes if process.http} == {True}
    plan = plan_local(parsed(), (), iter(range(1000, 2000)).__next__)
    assert {url.partition(":")[0] for url in plan.base_urls} == {"http"}
