"""`security.keys`, `scopes` and `public`: what is accepted, and what is refused with its line and path."""

import itertools

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.plan import plan_local
from llmserve.core.errors import ManifestError

HEAD = "kind: LLMServe\nmodels: {primary: {source: hub:org/name}}\n"
REDIS = "state: {backend: redis, redis: {url: 'redis://h:6379/0'}}\n"


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("", False),
        ("security: {public: {metrics: false, docs: true}}\n", False),
        ("security: {api_keys: [{tenant: red, key: k}]}\n", True),
        ("security: {keys: {file: keys.json}}\n", True),
        (REDIS + "security: {keys: {redis: true}}\n", True),
    ],
)
def test_when_clients_have_to_show_who_they_are(text: str, asks: bool) -> None:
    manifest = parse_manifest(HEAD + "deployment: {local: {host: 0.0.0.0}}\n" + text, "m.yaml")
    assert manifest.security.asks_callers is asks
    notes = " ".join(plan_local(manifest, range(8), itertools.count(9000).__next__).notes)
    assert ("everybody may use it" in notes) is not asks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("security: {keys: {}}\n", "m.yaml:3: security.keys: has no place; set file or redis: true"),
        (
            "security: {keys: {file: f, redis: true}}\n",
            "m.yaml:3: security.keys: has both file and redis; keep one",
        ),
        ("security: {keys: {redis: true}}\n", "m.yaml:3: security.keys.redis: needs state.redis.url"),
        ("security: {api_keys: [{tenant: r, key: k, scopes: []}]}\n", "security.api_keys[0].scopes"),
        ("security: {api_keys: [{tenant: r, key: k, scopes: [all]}]}\n", "security.api_keys[0].scopes[0]"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as refused:
        parse_manifest(HEAD + text, "m.yaml")
    assert message in refused.value.message
