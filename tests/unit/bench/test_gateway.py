"""The load, the cases and the report of `bench gateway`."""

import asyncio
import itertools
import json
import os
from collections.abc import Sequence

import pytest

from bench.gateway.apiservers import MeasuredTurn, row
from bench.gateway.gateway import cases, report, short_and_many
from bench.gateway.load import Load, Prompts, ask, chat, drive
from bench.gateway.turns import Case, Turn, cpu_seconds

BODY = b'{"choices":[{"message":{"content":"text"},"finish_reason":"length"}]}'
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
CHUNK = b'data: {"finish_reason":null}\n\n'
LAST = b'data: {"finish_reason":"length"}\n\ndata: [DONE]\n\n'
STREAMED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"".join(
    b"%x\r\n%b\r\n" % (len(data), data) for data in (CHUNK, CHUNK, LAST, b"")
)
CASE = Case("streamed", "30", 16, 32)


class Server:
    """Answers each request with the next of `answers`, in pieces of `size` bytes. Keeps what it was asked."""

    def __init__(self, answers: Sequence[bytes], size: int = 10_000) -> None:
        self._answers, self._size = itertools.cycle(answers), size
        self.bodies: list[dict[str, object]] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        if self._connections:
            await asyncio.wait(self._connections, timeout=2)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.partition(b"Content-Length:")[2].split(b"\r\n")[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                answer = next(self._answers)
                for start in range(0, len(answer), self._size):
                    writer.write(answer[start : start + self._size])
                    await writer.drain()
                    await asyncio.sleep(0)
                if not answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has closed
        writer.close()


def prompts(url: str) -> Prompts:
    return Prompts(url, "model", chat(40), 16, stream=True)


async def _drive(*answers: bytes, size: int = 10_000) -> tuple[Load, Server]:
    server = Server(answers, size)
    async with server as url:
        load = await drive(url, prompts(url), clients=2, seconds=0.05, numbers=itertools.count(7))
    return load, server


@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize(("answer", "chunks"), [(PLAIN, 0), (STREAMED, 3)], ids=["plain", "streamed"])
async def test_an_answer_is_read_to_its_end_in_whatever_pieces_it_comes(
    answer: bytes, chunks: int, size: int
) -> None:
    load, server = await _drive(answer, size=size)

    assert not load.failures
    assert load.requests == len(server.bodies) > 0
    assert load.chunks == chunks * load.requests


async def test_requests_differ_in_their_number_only() -> None:
    _, server = await _drive(PLAIN)

    assert server.bodies[0]["stream"] is True
    first = [body["messages"][0]["content"].partition(" ") for body in server.bodies[:2]]  # type: ignore[index]
    assert sorted(number for number, _, _ in first) == ["000000007", "000000008"]
    assert first[0][2] == first[1][2]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno",
        STREAMED.replace(b'"length"', b'"errors"'),
        b"",
    ],
    ids=["refused", "ended by an error", "cut off"],
)
async def test_an_answer_that_is_not_whole_is_a_failure_and_ends_the_turn(answer: bytes) -> None:
    load, server = await _drive(answer)

    assert 1 <= len(load.failures) <= 2
    assert len(server.bodies) <= 2  # one of each client
    assert load.failures[0] == answer[:300].decode()


async def test_a_single_answer_is_its_body_or_an_error() -> None:
    async with Server([PLAIN, b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"]) as url:
        assert await ask(url, prompts(url), 1) == json.loads(BODY)
        with pytest.raises(RuntimeError, match="500"):
            await ask(url, prompts(url), 2)


def test_a_shared_chat_differs_in_its_last_message_only() -> None:
    *history, last = chat(7500, is_shared=True)

    assert len(history) == 24
    assert {message["role"] for message in history[::2]} == {"user"}
    assert last["content"].startswith("012345678")
    assert not any("012345678" in message["content"] for message in history)
    assert 7000 < sum(len(message["content"].split()) for message in history) < 7500


def test_the_default_cases_change_one_thing_at_a_time() -> None:
    default = [case for case in cases(every=False) if case.kind == "plain"]

    assert default == [
        Case("plain", "30", 16, 1),
        Case("plain", "30", 16, 32),
        Case("plain", "30", 16, 256),
        Case("plain", "30", 200, 32),
        Case("plain", "1500", 16, 32),
        Case("plain", "7500-shared", 16, 32),
    ]


def test_cases_are_chosen_by_each_option() -> None:
    assert len(cases(every=True)) == 48
    assert cases(every=False, kinds=["plain"], prompts=["7500"], tokens=[200], clients=[1]) == [
        Case("plain", "7500", 200, 1)
    ]
    assert {case.kind for case in cases(every=False, kinds=["plain"])} == {"plain"}


def test_cpu_time_of_a_process_grows_as_it_computes() -> None:
    before = cpu_seconds(os.getpid())
    assert sum(range(200_000)) > 0
    assert 0.0005 < cpu_seconds(os.getpid()) - before < 10


def _turns(*floor_ms: float, failures: Sequence[str] = ()) -> dict[str, list[Turn]]:
    load = Load([0.010, 0.020], list(failures), 1.0, 0.001, chunks=34)
    ours = {"apiserver": 4.0, "router": 1.0, "kvmanager": 0.5, "prefill": 2.0, "decode": 3.0}
    return {
        "floor": [Turn(load, {"floor": ms}) for ms in floor_ms],
        "ours": [Turn(load, ours) for _ in floor_ms],
    }


def test_the_report_has_medians_by_process_and_their_ratio_to_the_floor() -> None:
    text = report({CASE: _turns(1.0, 2.0, 9.0)})

    name = "streamed, 30 + 16 tokens"
    assert f"| {name} | 32 | 2.00 | 4.00 | 1.00 | 0.50 | 2.00 | 3.00 | 5.50 | 2.75 | 2.00 |" in text
    assert f"| {name} | 32 | floor | 2 | 20.0 | 20.0 | 17.0 | 0.50 | 0 |" in text


def test_the_report_compares_rivals_with_the_floor_alone() -> None:
    turns = _turns(2.0)
    turns["smg"] = [Turn(turns["floor"][0].load, {"smg": 0.5, "floor": 2.5})]

    assert "| streamed, 30 + 16 tokens | 32 | smg | 0.50 | 2.50 | 1.50 |" in report({CASE: turns})


def test_the_report_compares_the_cluster_with_and_without_mtls() -> None:
    turns = _turns(2.0)
    ours = turns["ours"][0]
    slower = Load(ours.load.latencies, [], ours.load.seconds * 1.25, ours.load.client_cpu_seconds)
    assert "with mTLS" not in report({CASE: turns})
    turns["ours, mtls"] = [Turn(slower, {name: 2 * ms for name, ms in ours.cpu_ms.items()})]
    rate, cost = ours.load.requests / ours.load.seconds, sum(ours.cpu_ms.values())
    row = f"| 32 | {rate:.0f} | {rate / 1.25:.0f} | 80.0% | {cost:.2f} | {2 * cost:.2f} |"
    assert f"| streamed, 30 + 16 tokens {row}" in report({CASE: turns})


def test_a_failed_request_ends_the_bench_with_an_error_that_has_the_tables() -> None:
    with pytest.raises(SystemExit) as end:
        report({CASE: _turns(1.0, failures=["HTTP/1.1 503"])})

    text = str(end.value)
    assert "| streamed, 30 + 16 tokens | 32 | floor | 2 | 20.0 | 20.0 | 17.0 | 0.50 | 1 |" in text
    assert "2 requests failed:\nfloor: streamed, 30 + 16 tokens, 32 clients: HTTP/1.1 503" in text


def test_several_apiservers_are_asked_short_requests_of_many_clients() -> None:
    assert short_and_many({"kinds": None, "prompts": None, "tokens": None, "clients": None}) == [
        Case(kind, "30", 16, clients) for kind in ("plain", "streamed") for clients in (32, 256)
    ]
    assert short_and_many({"kinds": ["plain"], "clients": [32], "tokens": [200]}) == [
        Case("plain", "30", 200, 32)
    ]


def test_all_apiservers_of_a_cluster_count_together() -> None:
    """Of 200 requests in 2 s; a quarter of a core is used."""
    load = Load([0.010] * 200, [], 2.0, 0.001)
    cpu_ms = {"apiserver-0": 1.0, "apiserver-1": 0.6, "router-0": 0.4, "prefill-0": 0.2, "decode-0": 0.3}

    cells = row(CASE, 2, [MeasuredTurn(Turn(load, cpu_ms), (1.1, 0.9), 0.3, 2.5)])

    assert cells[:5] == (2, CASE, 32, "100", "0.90 to 1.10 x fair")
    assert cells[5:] == ("1.60", "0.40", "0.50", "0.25", "0.30", "2.50", "625", "2500")
