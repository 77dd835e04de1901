"""Ranks in another container's pid namespace, and one on the KV manager's host, with one KV manager.

All are processes of their own. The ranks are whole StoreWorkers with their link, without vLLM's scheduler.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import xxhash

from tests.support.transports import need_transport

ROOT = Path(__file__).parents[3]
HOST = "127.0.0.1"
# As root without a user namespace of its own; else in one.
ELSEWHERE = ("unshare", *(() if os.geteuid() == 0 else ("-Ur",)), "--pid", "--fork", "--kill-child")
MANIFEST = """
kind: LLMServe
metadata: {name: elsewhere}
models: {primary: {source: hub:org/name}}
storageClasses: [{name: memory, tier: dram, capacity_gb: 0.0625}]
"""
# Without what vLLM changes of torch's compiler: a rank compiles nothing, and imports for 2 s instead of 4.
RANK = """
import sys, types
sys.modules["vllm.env_override"] = types.ModuleType("vllm.env_override")
from tests.integration.engines.store_elsewhere import main
main()
"""
KINDS = ["nixl", "ucx", "nccl", "tcp"]
pytestmark = pytest.mark.timeout(180)


def can_unshare() -> bool:
    try:
        return subprocess.run([*ELSEWHERE, "true"], capture_output=True, timeout=10).returncode == 0
    except OSError:
        return False


if not can_unshare():
    pytest.skip("this machine gives processes no pid namespace of their own", allow_module_level=True)


class Process:
    def __init__(self, command: Sequence[str], **environment: str) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def do(self, operation: str, hashes: Sequence[str], first: int) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps([operation, hashes, first]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.line())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


StartRank = Callable[..., Process]
StartManager = Callable[[str, int], Process]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start_manager(stack: ExitStack, tmp_path: Path) -> StartManager:
    def start(order: str, port: int) -> Process:
        (tmp_path / "llmserve.yaml").write_text(f"{MANIFEST}transfer: {{engine_order: [{order}]}}\n")
        manifest = ["--manifest", str(tmp_path / "llmserve.yaml"), "--name", "kvmanager-0"]
        command = [sys.executable, "-m", "llmserve.kvstore", *manifest, "--listen", f"{HOST}:{port}"]
        process = Process(command)
        stack.callback(process.close)
        while not (line := process.line()).startswith("LLMSERVE_READY"):
            assert line, "it has ended"
        return process

    return start


@pytest.fixture
def start_rank(stack: ExitStack) -> StartRank:
    def start(
        name: str, port: int, order: str, prefix: Sequence[str] = ELSEWHERE, faults: str = ""
    ) -> Process:
        command = [*prefix, sys.executable, "-c", RANK, f"{HOST}:{port}", name, HOST, order]
        process = Process(command, LLMSERVE_FAULTS=faults)
        stack.callback(process.close)
        return process

    return start


@pytest.fixture
def port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def chain(blocks: int) -> list[str]:
    return [xxhash.xxh3_128_hexdigest(str(number).encode()) * 2 for number in range(blocks)]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_go_between_hosts_over_each_transport(
    kind: str, start_manager: StartManager, start_rank: StartRank, port: int
) -> None:
    need_transport(kind)
    order, keys = "" if kind == "tcp" else kind, chain(3)
    near = start_rank("near", port, order, prefix=())
    far = [start_rank(name, port, order) for name in ("one", "two")]
    start_manager(order, port)
    assert [process.line() for process in (near, *far)] == ['"ready"\n'] * 3
    stored = far[0].do("store", keys, 1)
    assert len(set(stored)) == 3
    assert far[1].do("load", keys, 5) == stored, "written and read from elsewhere"
    assert near.do("load", keys, 0) == stored, "written elsewhere, read on the host"
    rows = far[0].do("rows", [], 0)
    assert {peer for peer, _, _ in rows} == {"kvmanager-0"}
    assert any(moved_bytes for _, _, moved_bytes in rows)
    assert near.do("rows", [], 0) == [], "it maps the memory"
    other = [key[::-1] for key in keys]
    stored = near.do("store", other, 4)
    assert far[0].do("load", other, 0) == stored, "written on the host, read elsewhere"


def test_when_a_transport_fails_the_next_one_copies(
    start_manager: StartManager, start_rank: StartRank, port: int
) -> None:
    """A probe makes the first seven copies over tcp; a load makes two: its bytes, and the generations."""
    need_transport("ucx")
    far = [
        start_rank("one", port, "ucx", faults="ucx: fail_poll=1/1"),
        start_rank("two", port, "ucx", faults="ucx: fail_submit=1/1; tcp: fail_poll=1/1 after 9"),
    ]
    start_manager("ucx", port)
    assert [process.line() for process in far] == ['"ready"\n'] * 2
    keys = chain(2)
    stored = far[0].do("store", keys, 1)
    assert far[0].do("load", keys, 4) == stored
    assert far[1].do("load", keys, 0) == stored
    assert far[1].do("load", keys, 0) == ["failed"] * 2, "a miss, when none is left"


def test_a_manager_that_was_restarted_is_reached_again(
    start_manager: StartManager, start_rank: StartRank, port: int
) -> None:
    far, keys = start_rank("one", port, ""), chain(2)
    assert far.line() == '"ready"\n'
    manager = start_manager("", port)
    stored = far.do("store", keys, 1)
    manager.close()
    start_manager("", port)
    assert far.do("load", keys, 4) == [], "it has other memory, and nothing in it"
    assert far.do("store", keys, 1) == stored
    assert far.do("load", keys, 4) == stored
