"""What a connection may send before its request is looked at, and how many an address may have."""

import asyncio
from http import HTTPStatus

import pytest

from llmserve.apiserver.limits.connections import ConnectionCounts, HeadReader
from llmserve.config.schema.limits import SecurityLimits

LIMITS = SecurityLimits(headers=8, header_kib=1, header_seconds=2.0)


class Reader(HeadReader):
    def __init__(self) -> None:
        self.problems: list[tuple[HTTPStatus, str]] = []
        super().__init__(LIMITS, lambda status, why: self.problems.append((status, why)))


def test_an_address_has_so_many_connections() -> None:
    counts = ConnectionCounts(2)
    assert [counts.take("a") for _ in range(3)] == [True, True, False]
    assert counts.take("b")
    counts.give_back("a")
    assert counts.take("a")
    assert not counts.take("a")


def test_connections_without_an_address_are_not_counted() -> None:
    counts = ConnectionCounts(1)
    assert counts.take(None)
    counts.give_back(None)
    assert counts.take(None)
    assert counts.take(None)


@pytest.mark.virtual_time
class TestHeads:
    async def test_headers_within_the_limits(self) -> None:
        reader = Reader()
        reader.wait()
        reader.begin()
        for size_bytes, headers in ((24, 0), *((125, 1),) * 8):
            reader.add(size_bytes, headers)
        assert reader.complete()
        await asyncio.sleep(10)
        assert reader.problems == []

    @pytest.mark.parametrize(("sizes", "said"), [([1] * 9, "at most 8 headers"), ([1025], "at most 1 KiB")])
    async def test_headers_beyond_them(self, sizes: list[int], said: str) -> None:
        reader = Reader()
        reader.begin()
        for size_bytes in sizes:
            reader.add(size_bytes)
        assert not reader.complete()
        ((status, why),) = reader.problems
        assert status == 431
        assert said in why

    async def test_a_header_without_an_end(self) -> None:
        reader = Reader()
        reader.begin()
        reader.received(5000)  # with the end of the body before
        reader.received(1024)
        assert reader.problems == []
        reader.received(1)
        assert [status for status, _ in reader.problems] == [431]
        reader.stop()

    async def test_what_one_request_sent_is_not_the_next_one_s(self) -> None:
        reader = Reader()
        for _ in range(3):
            reader.begin()
            reader.add(600)
            reader.received(600)
            assert reader.complete()

    async def test_a_body_is_no_head(self) -> None:
        reader = Reader()
        reader.begin()
        assert reader.complete()
        reader.received(100_000)
        assert reader.problems == []

    async def test_headers_have_a_deadline_from_the_first_wait(self) -> None:
        reader = Reader()
        reader.wait()
        await asyncio.sleep(1.5)
        reader.wait()
        reader.begin()
        await asyncio.sleep(1)
        message = "the headers did not arrive within 2 s (security.limits.header_seconds)"
        assert reader.problems == [(HTTPStatus.REQUEST_TIMEOUT, message)]
