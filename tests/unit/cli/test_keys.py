"""`llmserve keys` on a key file."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from llmserve.apiserver.auth.credential import Credential
from llmserve.apiserver.auth.stores.file import FileKeys
from llmserve.apiserver.auth.stores.live_keys import LiveKeys
from llmserve.cli import main

MANIFEST = "kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\nsecurity: {keys: {file: keys.json}}\n"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "llmserve.yaml"
    path.write_text(MANIFEST)
    return path


def keys(manifest: Path, *arguments: str) -> int:
    action, *others = arguments
    return main(["keys", action, "-f", str(manifest), *others])


def listed(manifest: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert keys(manifest, "list", "--json") == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["keys"]
    return found


def test_a_key_is_shown_once_and_works(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(manifest, "create", "--tenant", "red") == 0
    text = capsys.readouterr().out.strip()
    live = LiveKeys(FileKeys(manifest.parent / "keys.json"))  # beside the manifest
    asyncio.run(live.refresh())
    caller = live.find(Credential(text))
    assert caller is not None
    assert (caller.tenant, sorted(caller.scopes)) == ("red", ["inference", "read"])
    (shown,) = listed(manifest, capsys)
    assert shown["id"] == caller.key_id
    assert "sha256" not in shown


def test_every_right_and_limit(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rights = "--tenant ops --scope read --scope admin --model tiny --model large --adapter sql"
    limits = "--requests-per-second 2.5 --tokens-per-second 1000 --concurrency 3 --expires 30d --json"
    assert keys(manifest, "create", *rights.split(), *limits.split()) == 0
    made = json.loads(capsys.readouterr().out)
    assert made.pop("key").startswith(f"ls-{made['id']}-")
    assert listed(manifest, capsys) == [made]
    assert made["scopes"] == ["read", "admin"]
    assert (made["models"], made["adapters"]) == (["tiny", "large"], ["sql"])
    assert (made["requests_per_second"], made["tokens_per_second"], made["max_requests_in_flight"]) == (
        2.5,
        1000,
        3,
    )
    assert made["expires_at"] == pytest.approx(time.time() + 30 * 86400, abs=60)
    assert keys(manifest, "list") == 0
    table = capsys.readouterr().out
    assert "tiny, large, sql" in table
    assert "2.5 requests/s, 1000 tokens/s, 3 at once" in table


def test_a_revoked_key_is_gone(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys(manifest, "create", "--tenant", "red")
    name = capsys.readouterr().out.split("-")[1]
    assert keys(manifest, "revoke", name) == 0
    assert capsys.readouterr().out == f"key {name} is revoked\n"
    assert listed(manifest, capsys) == []
    assert keys(manifest, "revoke", name) == 2
    assert f"there is no key {name}" in capsys.readouterr().err


def test_the_file_may_be_given_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    assert main(["keys", "create", "--tenant", "red", "--key-file", str(path)]) == 0
    assert path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tenant", "red", "--expires", "soon"), "soon is not a number of minutes, hours or days"),
        (("--tenant", "red", "--requests-per-second", "0"), "0 is not a positive number"),
        (("--scope", "read"), "--tenant"),
    ],
)
def test_what_a_key_cannot_have(
    manifest: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit):
        keys(manifest, "create", *arguments)
    assert message in capsys.readouterr().err
    assert not (manifest.parent / "keys.json").exists()


def test_a_manifest_without_a_place(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.write_text(MANIFEST.rpartition("security")[0])
    assert keys(manifest, "list") == 2
    assert "names no place of keys: set security.keys.file" in capsys.readouterr().err
