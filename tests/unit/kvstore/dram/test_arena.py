"""The memory itself: whose it is, who may attach, what is left of it."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmserve.core.errors import StartFailed, TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.arena import Arena
from llmserve.kvstore.dram.client.attached import AttachedArena

MIB = 1 << 20
STRANGER = """
import os, sys
from llmserve.core.errors import TransferError
from llmserve.kvstore.dram.client.attached import AttachedArena
os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    AttachedArena(sys.argv[1])
except TransferError as error:
    print(error.message)
"""


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def mappings(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(f"memfd:llmserve-kv-{name}")


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena("one", 4 * MIB)
    yield arena
    arena.close()


@contextmanager
def attached(arena: Arena) -> Iterator[AttachedArena]:
    other = AttachedArena(arena.description())
    yield other
    other.close()


def test_both_see_the_same_bytes_and_generations(arena: Arena) -> None:
    with attached(arena) as other:
        arena.view(4096, 5)[:] = b"hello"
        arena.generations[1] = 8
        _, view = other.place(Slot(4096, 5, 8))
        assert bytes(view) == b"hello"
        assert other.is_current(Slot(4096, 5, 8))
        assert not other.is_current(Slot(4096, 5, 7))
        assert not other.is_current(Slot(0, 5, 0)), "no generation is never current"
        assert other.arena_id == arena.arena_id
        assert other.region.length_bytes == arena.region.length_bytes == 4 * MIB
        other.populate()
        assert other.owner_lives()
        del view


def test_the_data_begins_at_a_huge_page_of_the_file_and_of_memory(arena: Arena) -> None:
    assert arena.shape.data_offset % (2 * MIB) == 0
    assert arena.region.address % (2 * MIB) == 0
    assert arena.shape.words * 4096 == 4 * MIB


def test_two_clusters_on_one_host_have_nothing_in_common(arena: Arena) -> None:
    second = Arena("one", 4 * MIB)  # even of one name
    with attached(arena) as to_first, attached(second) as to_second:
        arena.view(0, 1)[:] = b"1"
        second.view(0, 1)[:] = b"2"
        assert bytes(to_first.place(Slot(0, 1))[1]) == b"1"
        assert bytes(to_second.place(Slot(0, 1))[1]) == b"2"
    second.close()


def test_closing_leaves_nothing(arena: Arena) -> None:
    files, maps = open_files(), mappings("one")
    other_arena = Arena("one", 4 * MIB)
    other = AttachedArena(other_arena.description())
    for end in (other, other_arena):
        end.close()
        end.close()
    assert not other.owner_lives()
    assert (open_files(), mappings("one")) == (files, maps)


def test_a_start_that_fails_leaves_nothing() -> None:
    files = open_files()
    with pytest.raises(StartFailed, match=r"wants 6 MiB of shared memory, free: 100 MiB \(256 MiB must stay"):
        Arena("small", 4 * MIB, free_bytes=lambda: 100.0 * MIB)
    assert open_files() == files


@pytest.mark.parametrize("limit", [resource.RLIMIT_FSIZE, resource.RLIMIT_AS])
def test_memory_that_the_system_refuses_is_an_error_at_the_start(limit: int) -> None:
    files, before = open_files(), resource.getrlimit(limit)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(limit, (pages * 4096 + 16 * MIB if limit == resource.RLIMIT_AS else MIB, before[1]))
    try:
        with pytest.raises(StartFailed, match="wants 66 MiB of shared memory, free: "):
            Arena("refused", 64 * MIB)
    finally:
        resource.setrlimit(limit, before)
    assert open_files() == files
    assert mappings("refused") == 0


def test_huge_pages_that_are_gone_when_they_are_asked_for_are_done_without() -> None:
    arena = Arena("huge", 4 * MIB, free_huge_bytes=lambda _: 1 << 60)
    arena.view(0, 5)[:] = b"there"
    arena.close()


def test_a_view_outlives_the_closing(arena: Arena) -> None:
    """A copy under way must not lose its memory."""
    other = AttachedArena(arena.description())
    before = mappings("one")
    view = other.place(Slot(0, 100))[1]
    other.close()
    view[:] = bytes(range(100))
    assert bytes(arena.view(0, 100)) == bytes(range(100))
    del view
    assert mappings("one") < before


def test_the_owner_is_watched_from_a_process_with_many_open_files(arena: Arena) -> None:
    """More than select() can count."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, before[1]), before[1]))
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(1024)]
    try:
        with attached(arena) as other:
            assert other.owner_lives()
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_nobody_can_change_its_size(arena: Arena) -> None:
    fields = json.loads(arena.description())
    fd = os.open(f"/proc/self/fd/{fields['fd']}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("boot_id", "another", "on another host"),
        ("pid_namespace", 1, "in another container"),
        ("fd", 0, "no longer has it|cannot attach"),
        ("fd", 99_999, "cannot attach"),
        ("inode", 1, "no longer has it"),
        ("nonce", "0" * 32, "no longer has it"),
        ("capacity_bytes", 8 * MIB, "no longer has it"),
        ("pid", 1 << 22, "has ended"),
        ("pid", -5, "malformed"),
        ("capacity_bytes", "8", "malformed"),
    ],
)
def test_a_description_of_something_else_is_refused(
    arena: Arena, field: str, value: object, reason: str
) -> None:
    files, maps = open_files(), mappings("one")
    text = json.dumps(json.loads(arena.description()) | {field: value})
    with pytest.raises(TransferError, match=reason):
        AttachedArena(text)
    assert (open_files(), mappings("one")) == (files, maps)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"pid":1}'])
def test_no_description_is_refused(text: str) -> None:
    with pytest.raises(TransferError, match="malformed"):
        AttachedArena(text)


def test_a_closed_arena_cannot_be_attached(arena: Arena) -> None:
    description = arena.description()
    arena.close()
    with pytest.raises(TransferError, match=r"no longer has it|cannot attach"):
        AttachedArena(description)


def test_no_slot_lies_outside(arena: Arena) -> None:
    with attached(arena) as other:
        for slot in (Slot(-4096, 10), Slot(4 * MIB, 1), Slot(4 * MIB - 4096, 4097)):
            with pytest.raises(TransferError, match="no such slot"):
                other.place(slot)


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user takes root")
def test_another_user_cannot_attach(arena: Arena) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, arena.description()], capture_output=True, text=True, check=True
    )
    assert "must run as the same user" in done.stdout
