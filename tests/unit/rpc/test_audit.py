"""What the audit log has, where it is, and for how long it stays."""

import json
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmserve.core.errors import StartFailed
from llmserve.rpc import audit, permissions
from llmserve.rpc.audit import AuditEntry, open_audit, record_call, record_refusal
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, router_pb2, worker_pb2
from llmserve.rpc.role import open_manifest

BLOCKS = {"tier": "dram", "tenant": "red", "hash_prefix": "0f"}
FILTER = kvmanager_pb2.BlockFilter(tier="dram", tenant="red", hash_prefix="0f")
ENTRY = AuditEntry("POST /admin/reload", "200", {"tenant": "red", "address": ""}, {"request_id": "1"})


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    loggers = (audit._CALLS, audit._REFUSALS)
    yield
    for logger in loggers:
        for handler in logger.handlers:
            handler.close()
        logger.handlers[:], logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_who_asked_for_what_and_with_which_result(tmp_path: Path) -> None:
    open_audit(tmp_path / "logs", "apiserver-0", 1 << 20, on=True)
    record_call(ENTRY)
    (line,) = lines(tmp_path / "logs" / "audit-apiserver-0.jsonl")
    assert line.pop("time").endswith("Z")
    assert line == {"tenant": "red", "what": "POST /admin/reload", "request_id": "1", "result": "200"}


def test_refusals_are_apart_and_files_are_private(tmp_path: Path) -> None:
    open_audit(tmp_path, "router-0", 1 << 20, on=True)
    record_refusal(ENTRY)
    assert (tmp_path / "audit-router-0.jsonl").read_text() == ""
    assert len(lines(tmp_path / "refusals-router-0.jsonl")) == 1
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_what_a_client_made_up_stays_short_and_within_its_line(tmp_path: Path) -> None:
    open_audit(tmp_path, "a", 1 << 20, on=True)
    record_call(AuditEntry("GET /\n{}\x1b[2J" + "x" * 1000, "404", {}, {}))
    (line,) = lines(tmp_path / "audit-a.jsonl")
    assert len(line["what"]) == 300
    assert "\x1b" not in line["what"]


def test_a_new_run_goes_on_in_the_file_and_old_files_are_few(tmp_path: Path) -> None:
    for _ in range(2):
        open_audit(tmp_path, "a", 500, on=True)
        record_call(ENTRY)
    assert len(lines(tmp_path / "audit-a.jsonl")) == 2
    for _ in range(50):
        record_call(ENTRY)
    found = sorted(path.name for path in tmp_path.glob("audit-a.jsonl*"))
    assert found == ["audit-a.jsonl", *(f"audit-a.jsonl.{number}" for number in (1, 2, 3, 4))]
    assert all(path.stat().st_size <= 500 for path in tmp_path.glob("audit-a.jsonl*"))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_without_a_folder_lines_are_part_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    open_audit(None, "a", 500, on=True)
    record_refusal(ENTRY)
    assert '"what": "POST /admin/reload"' in caplog.text


def test_it_can_be_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_audit(tmp_path, "a", 500, on=False)
    record_call(ENTRY)
    assert list(tmp_path.iterdir()) == []
    assert caplog.text == ""


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartFailed, match=r"file/audit-a\.jsonl"):
        open_audit(tmp_path / "file", "a", 500, on=True)


def test_a_question_is_no_call(caplog: pytest.LogCaptureFixture) -> None:
    open_audit(None, "a", 500, on=True)
    context = SimpleNamespace(invocation_metadata=lambda: (), peer=lambda: "unix:")
    audit.call_ended("/llmserve.v1.Router/Reload", router_pb2.ReloadRequest(only_check=True), context)
    assert caplog.text == ""
    audit.call_ended("/llmserve.v1.Router/Reload", router_pb2.ReloadRequest(), context)
    assert "Router/Reload" in caplog.text


def test_all_that_operators_may_call_is_recorded_or_only_reads() -> None:
    reading = {
        *(f"Router/{name}" for name in ("GetClusterStatus", "Explain", "ListAdapters", "ListModels")),
        "Router/FollowModels",  # of the supervisor, which carries out what the router decided
        "Worker/GetWorkerStatus",
        *(f"KVManager/{name}" for name in ("Lookup", "GetKvStatus", "ListBlocks")),
    }
    allowed = {name for name, roles in permissions._CALLERS.items() if CallerRole.OPERATOR in roles}
    assert allowed - audit._ADMINISTRATIVE == {f"/llmserve.v1.{name}" for name in reading}
    assert allowed > audit._ADMINISTRATIVE


REQUESTS: dict[str, Any] = {
    "Router/Drain": router_pb2.DrainRequest(worker_id="decode-7", order=router_pb2.DrainOrder(drain=True)),
    "Router/Reload": router_pb2.ReloadRequest(text="a secret", file="m.yaml"),
    "Router/LoadAdapter": router_pb2.LoadAdapterRequest(
        model="tiny", name="sql", source="dir:/sql", pin=True, prefetch=router_pb2.ADAPTER_TIER_DISK
    ),
    "Router/UnloadAdapter": router_pb2.UnloadAdapterRequest(model="tiny", name="sql"),
    "Router/KeepAdapter": router_pb2.KeepAdapterRequest(name="sql", pin=False),
    "Router/LoadModel": router_pb2.LoadModelRequest(
        entry='{"name": "tiny", "source": "hub:a/b", "engine": {"env": "a secret"}}', swap="large"
    ),
    "Router/UnloadModel": router_pb2.UnloadModelRequest(name="tiny"),
    "Worker/Profile": worker_pb2.ProfileRequest(seconds=2),
    "KVManager/PinBlocks": kvmanager_pb2.PinBlocksRequest(filter=FILTER, unpin=True),
    "KVManager/EvictBlocks": kvmanager_pb2.EvictBlocksRequest(filter=FILTER),
    "KVManager/VerifyBlocks": kvmanager_pb2.VerifyBlocksRequest(filter=FILTER, share=0.5),
    "KVManager/ExportBlocks": kvmanager_pb2.ExportBlocksRequest(filter=FILTER),
    "KVManager/ImportBlocks": iter(()),  # a stream
}
ABOUT: dict[str, dict[str, str]] = {
    "Router/Drain": {"worker_id": "decode-7", "drain": "true"},
    "Router/Reload": {"file": "m.yaml"},
    "Router/LoadAdapter": {
        "model": "tiny",
        "name": "sql",
        "source": "dir:/sql",
        "pin": "true",
        "prefetch": "ADAPTER_TIER_DISK",
    },
    "Router/UnloadAdapter": {"model": "tiny", "name": "sql"},
    "Router/KeepAdapter": {"name": "sql", "pin": "false"},
    "Router/LoadModel": {"name": "tiny", "source": "hub:a/b", "swap": "large"},
    "Router/UnloadModel": {"name": "tiny"},
    "Worker/Profile": {"seconds": "2.0"},
    "KVManager/PinBlocks": {**BLOCKS, "unpin": "true"},
    "KVManager/EvictBlocks": BLOCKS,
    "KVManager/VerifyBlocks": {**BLOCKS, "share": "0.5"},
    "KVManager/ExportBlocks": BLOCKS,
    "KVManager/ImportBlocks": {},
}


class Context:
    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("llmserve-caller", "operator/me/00")]

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"


@pytest.mark.parametrize("method", sorted(audit._ADMINISTRATIVE))
def test_a_line_says_by_names_what_a_call_is_for(method: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    name = method.removeprefix("/llmserve.v1.")
    audit.call_ended(method, REQUESTS[name], Context(), "NotFound")
    line = json.loads(caplog.messages[-1])
    assert line.pop("time")
    who = {"role": "operator", "caller": "me", "address": "ipv4:127.0.0.1:1"}
    assert line == {**who, "what": method, **ABOUT[name], "result": "NotFound"}


@pytest.mark.parametrize(
    "text", [b"", b"[1]", b"{", b"[" * 100_000, b"\xff", b'{"name": {"a": 1}, "key": "k"}']
)
def test_a_body_without_names_says_nothing(text: bytes) -> None:
    assert audit.named_in(text) == {}


def test_what_is_said_of_a_call_is_not_taken_for_who_made_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    record_call(AuditEntry("POST /admin/reload", "200", {"tenant": "red"}, {"tenant": "blue", "name": "a"}))
    assert json.loads(caplog.messages[-1])["tenant"] == "red"


@pytest.mark.parametrize(("mode", "files"), [("local", 2), ("k8s", 0)])
def test_a_pod_writes_it_to_its_log(tmp_path: Path, mode: str, files: int) -> None:
    manifest = tmp_path / "m.yaml"
    manifest.write_text(f"kind: LLMServe\nmodels: [{{source: 'hub:o/a'}}]\ndeployment: {{mode: {mode}}}\n")
    open_manifest(Namespace(manifest=str(manifest), run_dir=str(tmp_path / "run"), name="router-0"))
    record_call(ENTRY)
    record_refusal(ENTRY)
    assert len(list(tmp_path.rglob("*.jsonl"))) == files
