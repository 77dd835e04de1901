"""Files of tenants: limits, expiry, and what a process that dies leaves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmserve.apiserver.batches.disk import DiskStorage
from llmserve.apiserver.batches.files import NewFile
from llmserve.apiserver.batches.names import CONTENTS, FILES, contents_path, new_file_id
from llmserve.core.errors import InvalidRequest, NotFound, RequestTooLarge, StorageFull, Unavailable
from llmserve.core.ids import TenantId
from tests.integration.apiserver.batches.conftest import RED, Bench, pieces

NEW = NewFile(RED, "in.jsonl", "batch")
BLUE = TenantId("blue/../red")


async def test_a_file_is_its_tenant_s(bench: Bench) -> None:
    made = await bench.files.upload(NEW, pieces(b"ab", b"c"))
    assert (made.bytes, made.filename, made.created_at) == (3, "in.jsonl", int(bench.now))
    assert await bench.files.get(RED, made.id) == made
    assert b"".join([piece async for piece in bench.files.contents(made.id)]) == b"abc"
    for file_id in (made.id, "file-x", "../x", f"{made.id}/..", ""):
        with pytest.raises(NotFound):
            await bench.files.get(BLUE, file_id)
    assert await bench.files.of_tenant(BLUE) == []
    await bench.files.delete(RED, made.id)
    assert await bench.files.of_tenant(RED) == []
    assert await bench.storage.names(CONTENTS) == []


async def test_limits_of_a_file_and_of_a_tenant(bench: Bench) -> None:
    half, rest = b"x" * 5_000, b"x" * 5_000
    with pytest.raises(RequestTooLarge, match="10000 bytes"):
        await bench.files.upload(NEW, pieces(half, rest, b"x"))
    with pytest.raises(InvalidRequest, match="empty"):
        await bench.files.upload(NEW, pieces())
    assert (await bench.storage.names(CONTENTS), await bench.files.of_tenant(RED)) == ([], [])
    first = await bench.files.upload(NEW, pieces(half, rest))
    await bench.files.upload(NEW, pieces(half))
    await bench.files.check_room(RED)
    with pytest.raises(StorageFull, match="20000 bytes"):
        await bench.files.upload(NEW, pieces(half, b"x"))
    await bench.files.upload(NEW, pieces(half))
    with pytest.raises(StorageFull):
        await bench.files.check_room(RED)
    assert await bench.files.keep(NEW, pieces(half)) is not None  # results are kept in any case
    await bench.files.check_room(BLUE)
    await bench.files.delete(RED, first.id)
    await bench.files.check_room(RED)


async def test_results_without_any_make_no_file(bench: Bench) -> None:
    assert await bench.files.keep(NEW, pieces()) is None
    assert await bench.storage.names(CONTENTS) == []


async def test_uploads_at_the_same_time_share_the_room_of_their_tenant(bench: Bench) -> None:
    begun = asyncio.Barrier(3)

    async def slow() -> AsyncIterator[bytes]:
        await begun.wait()  # now all have seen the same room
        yield b"x" * bench.file_bytes

    async with asyncio.timeout(10):
        made = await asyncio.gather(
            *(bench.files.upload(NEW, slow()) for _ in range(3)), return_exceptions=True
        )
    files = await bench.files.of_tenant(RED)
    assert sum(one.bytes for one in files) <= 2 * bench.file_bytes
    assert any(isinstance(one, StorageFull) for one in made)
    assert [one.id for one in files] == sorted(one.id for one in made if not isinstance(one, BaseException))
    assert len(await bench.storage.names(CONTENTS)) == len(files)


async def test_files_expire(bench: Bench) -> None:
    short = await bench.files.upload(NewFile(RED, "a", "batch", keep_seconds=3600), pieces(b"a"))
    long = await bench.files.upload(NEW, pieces(b"b"))
    bench.now += 3599
    await bench.files.sweep()
    assert {one.id for one in await bench.files.of_tenant(RED)} == {short.id, long.id}
    bench.now += 1
    with pytest.raises(NotFound):
        await bench.files.get(RED, short.id)
    await bench.files.sweep()
    assert [one.id for one in await bench.files.of_tenant(RED)] == [long.id]
    assert await bench.storage.names(CONTENTS) == [long.id]


async def test_contents_that_were_never_finished_go(bench: Bench) -> None:
    left = new_file_id(bench.now)
    await bench.storage.append(contents_path(left), b"half")
    kept = await bench.files.upload(NewFile(RED, "a", "batch", keep_seconds=200_000), pieces(b"a"))
    await bench.files.sweep()
    assert await bench.storage.names(CONTENTS) == sorted([left, kept.id])
    bench.now += 86_401
    await bench.files.sweep()
    assert await bench.storage.names(CONTENTS) == [kept.id]


async def test_contents_go_when_nothing_can_be_said_of_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(path: str, data: bytes) -> None:
        raise StorageFull("no room")

    monkeypatch.setattr(bench.storage, "put", full)
    with pytest.raises(StorageFull):
        await bench.files.upload(NEW, pieces(b"a"))
    assert await bench.storage.names(CONTENTS) == []


async def test_a_disk_that_is_full_or_away(tmp_path: Path) -> None:
    full = DiskStorage(tmp_path)
    (tmp_path / FILES).symlink_to("/dev/full")
    (tmp_path / CONTENTS).symlink_to("/nowhere/at/all")
    with pytest.raises(Unavailable, match="directory of batches"):
        await full.append(f"{CONTENTS}/a", b"x")
    with pytest.raises(StorageFull, match="No space left"):
        await full.append(FILES, b"x")
