"""Each weak setting is named, and what is not weak is not."""

from pathlib import Path

import pytest

from llmserve.config.load import parse_manifest
from llmserve.doctor import Finding, Status
from llmserve.doctor.security import weak_settings

_HEAD = "kind: LLMServe\nmodels: {primary: {source: hub:a/b}}\n"
_OPEN = "deployment: {local: {host: 0.0.0.0}}\n"
_KEY = "security: {api_keys: [{tenant: red, key_env: RED}]}\n"
_WRITTEN_KEY = "security: {api_keys: [{tenant: red, key: a-key}]}\n"


def found(text: str, path: Path = Path("m.yaml")) -> dict[str, Finding]:
    return {one.name: one for one in weak_settings(parse_manifest(_HEAD + text, "m.yaml"), path)}


def warned(text: str) -> set[str]:
    return {name for name, one in found(text).items() if one.status is Status.WARNING}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", set()),
        (_KEY, set()),
        (_OPEN, {"API keys", "metrics"}),
        (_OPEN + _KEY, {"metrics"}),
        (_OPEN + "security: {keys: {file: /no/keys.json}}", {"metrics"}),
        (
            _OPEN + "security: {oidc: [{issuer: 'https://h', audience: [a], rules: [{tenant: t}]}]}",
            {"metrics"},
        ),
        (_OPEN + "security: {api_keys: [{tenant: a, key_env: A}], public: {metrics: false}}", set()),
        ("deployment: {local: {host: '::1'}}", set()),
        ("deployment: {local: {host: localhost}}", set()),
        ("deployment: {mode: k8s}\n", {"API keys", "metrics", "own wires"}),
        ("deployment: {mode: k8s}\nsecurity: {mtls: {}}\n", {"API keys", "metrics"}),
        (
            "deployment: {mode: k8s}\nsecurity: {mtls: {plain_transports: true}}\n",
            {"API keys", "metrics", "own wires"},
        ),
        ("security: {mtls: {directory: c, plain_transports: true}}", set()),
        ("state: {backend: redis, redis: {url: 'redis://10.0.0.2:6379/0'}}", {"other servers"}),
        ("state: {backend: redis, redis: {url: 'rediss://10.0.0.2:6379/0'}}", set()),
        ("state: {backend: redis, redis: {url: 'redis://127.0.0.1:6379/0'}}", set()),
        ("engine: {options: {trust_remote_code: true}}", {"model code"}),
        ("engine: {options: {trust_remote_code: false}}", set()),
        ("batches: {location: s3://a/b, endpoint: 'http://s3.local'}", {"other servers"}),
        ("lora: {endpoint: 'http://s3.local'}", {"other servers"}),
        ("observability: {tracing: {endpoint: 'http://otel:4317'}}", {"other servers"}),
        ("observability: {tracing: {endpoint: 'https://otel:4317'}}", set()),
    ],
)
def test_weak_settings(text: str, names: set[str]) -> None:
    assert warned(text) == names


def test_an_s3_tier_in_the_clear() -> None:
    tier = "{name: far, tier: object, location: 's3://a/b', endpoint: 'http://s3:9000', capacity_gb: 1}"
    manifest = "storageClasses: [{name: near, tier: dram, capacity_gb: 1}, " + tier + "]"
    assert "storageClasses far (http://s3:9000)" in found(manifest)["other servers"].value


@pytest.mark.parametrize(("mode", "status"), [(0o644, "warning"), (0o640, "warning"), (0o600, "ok")])
def test_a_manifest_with_keys_is_private(tmp_path: Path, mode: int, status: str) -> None:
    path = tmp_path / "m.yaml"
    path.touch()
    path.chmod(mode)
    assert found(_WRITTEN_KEY, path)["key files"].status == status
    assert found(_KEY, path)["key files"].status is Status.OK
    assert found(_WRITTEN_KEY, tmp_path / "gone.yaml")["key files"].status is Status.OK


@pytest.mark.parametrize(("mode", "status"), [(0o644, "warning"), (0o620, "warning"), (0o600, "ok")])
def test_a_file_of_keys_is_its_owner_s(tmp_path: Path, mode: int, status: str) -> None:
    """Who can write it can let itself in."""
    keys = tmp_path / "keys.json"
    keys.touch()
    keys.chmod(mode)
    manifest = "security: {keys: {file: keys.json}}"
    assert found(manifest, tmp_path / "m.yaml")["key files"].status == status


@pytest.mark.parametrize(
    "place",
    ["keys: {file: ~/held/k.key}", "tls: {certificate: c, key: ~/held/k.key}", "mtls: {directory: '~'}"],
)
def test_keys_in_the_home_directory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "k.key").touch(0o644)
    assert found(f"security: {{{place}}}")["key files"].status is Status.WARNING


@pytest.mark.parametrize("key", ["https.key", "certs/worker/tls.key", "certs/ca/ca.key"])
def test_a_key_of_a_certificate_is_its_owner_s(tmp_path: Path, key: str) -> None:
    (file := tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
    file.touch(0o644)
    manifest = "security: {tls: {certificate: https.crt, key: https.key}, mtls: {directory: certs}}"
    assert str(file) in found(manifest, tmp_path / "m.yaml")["key files"].advice
    file.chmod(0o600)
    assert found(manifest, tmp_path / "m.yaml")["key files"].status is Status.OK


def test_the_advice_names_what_to_do() -> None:
    assert "security.keys" in found(_OPEN)["API keys"].advice
    assert "0.0.0.0" in found(_OPEN)["API keys"].value
    wires = found("deployment: {mode: k8s}")["own wires"]
    assert "security.mtls" in wires.advice
    assert wires.value == "with the cluster's secret, and not encrypted between hosts"  # every pod mounts it
