"""Which store of responses a manifest gets."""

import pytest

from llmserve.apiserver.responses.build import build_store
from llmserve.apiserver.responses.redis import RedisResponses
from llmserve.apiserver.responses.store import MemoryResponses
from llmserve.config.load import parse_manifest
from llmserve.core.clock import VirtualClock
from llmserve.core.errors import ManifestError

HEAD = "kind: LLMServe\nmodels: {primary: {source: hub:org/name}}\n"
KEPT = "api: {response_store: {enabled: true}}\n"
REDIS = "state: {backend: redis, redis: {url: 'redis://h:1', password_env: PW}}\n"


@pytest.mark.parametrize(
    ("text", "kind"),
    [("", type(None)), (REDIS, type(None)), (KEPT, MemoryResponses), (KEPT + REDIS, RedisResponses)],
)
def test_what_the_manifest_asks_for(text: str, kind: type) -> None:
    manifest = parse_manifest(HEAD + text, "m.yaml")
    assert isinstance(build_store(manifest, {"PW": "secret"}, VirtualClock()), kind)


def test_a_password_that_is_not_set() -> None:
    with pytest.raises(ManifestError, match="PW is not set"):
        build_store(parse_manifest(HEAD + KEPT + REDIS, "m.yaml"), {}, VirtualClock())
