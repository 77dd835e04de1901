"""Section `batches`: what is accepted, and refused with its line and path."""

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.core.errors import ManifestError

HEAD = "kind: LLMServe\nmodels: {primary: {source: hub:org/name}}\n"
K8S = "deployment: {mode: k8s}\n"


def parsed(text: str) -> Manifest:
    return parse_manifest(HEAD + text, "m.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        K8S,
        "batches: {location: /var/lib/batches, weight: 0.5, max_lines: 10}\n",
        "batches: {location: 's3://bucket/p', endpoint: 'http://h:1', region: eu}\n",
        K8S + "batches: {location: 'gs://bucket/p'}\n",
        K8S + "batches: {enabled: false, location: /nowhere}\n",
        "budgets: {tenants: [{tenant: red (batches), max_requests_in_flight: 1}]}\n",
    ],
)
def test_what_is_accepted(text: str) -> None:
    assert parsed(text).batches.concurrency == 32


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("batches: {location: here}\n", "m.yaml:3: batches.location: a directory is named by its absolute"),
        ("batches: {location: 'ftp://h/p'}\n", "m.yaml:3: batches.location: is neither a directory nor"),
        (
            "batches: {location: /d, endpoint: 'http://h:1'}\n",
            "m.yaml:3: batches.endpoint: is of s3:// locations",
        ),
        ("batches: {region: eu}\n", "m.yaml:3: batches.region: is of s3:// locations"),
        (K8S + "batches: {location: /d}\n", "m.yaml:4: batches.location: pods keep no files: name a bucket"),
        ("batches: {weight: 2.0}\n", "m.yaml:3: batches.weight"),
        (
            "security: {api_keys: [{tenant: 'red (batches)', key: x}]}\n",
            "m.yaml:3: security.api_keys[0].tenant: a name that ends with ' (batches)' is that of a tenant's",
        ),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    with pytest.raises(ManifestError) as raised:
        parsed(text)
    assert told in raised.value.message
