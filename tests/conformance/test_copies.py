"""Every implementation of Copies: what transfer/devices/copies.py promises."""

import mmap
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from llmserve.core.errors import TransferError
from llmserve.transfer.base import HOST, Int64Array, Region
from llmserve.transfer.devices import Bytes, Copies, HostCopies
from llmserve.transfer.devices.cuda import CudaCopies
from llmserve.transfer.devices.fake import FakeDevice
from tests.conformance.transport_peer import CHUNK_BYTES, DeviceBytes, checksum
from tests.support.transports import need_gpu

SIZE = 1 << 20
COUNTS = [1, 2, 100, 3000]


def _cuda() -> Copies:
    need_gpu()
    return CudaCopies(0)


KINDS: dict[str, Callable[[], Copies]] = {"host": HostCopies, "fake": FakeDevice, "cuda": _cuda}


@pytest.fixture(params=KINDS)
def copies(request: pytest.FixtureRequest) -> Iterator[Copies]:
    made = KINDS[request.param]()
    yield made
    made.close()


def noise(size: int) -> Bytes:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8)


def pinned(copies: Copies, content: Bytes) -> Bytes:
    packed = copies.pinned(len(content))
    packed[:] = content
    return packed


def put(copies: Copies, starts: Int64Array, lengths: Int64Array, content: Bytes) -> None:
    packed = pinned(copies, content)  # lives until the copy has ended
    copies.scatter(starts, lengths, packed).wait()


def filled(copies: Copies, content: Bytes) -> Region:
    """Memory of the device with this content."""
    region = copies.allocate(len(content))
    put(copies, np.array([region.address]), np.array([len(content)]), content)
    return region


def content_of(copies: Copies, region: Region) -> Bytes:
    packed = copies.pinned(region.length_bytes)
    copies.gather(np.array([region.address]), np.array([region.length_bytes]), packed).wait()
    return packed


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("unit", [1, 8])
def test_gathers_and_scatters_pieces_of_all_lengths(copies: Copies, count: int, unit: int) -> None:
    copies.enter()
    random = np.random.default_rng([count, unit])
    room = SIZE // count // unit * unit
    lengths = random.integers(0, room // unit, count) * unit
    offsets = random.permutation(count) * room
    content, other = noise(SIZE), noise(SIZE + 1)[:SIZE]
    region = filled(copies, content)
    packed = copies.pinned(SIZE)
    copies.gather(region.address + offsets, lengths, packed).wait()
    columns = list(zip(offsets.tolist(), lengths.tolist(), strict=True))
    expected = np.concatenate([content[at : at + length] for at, length in columns])
    assert np.array_equal(packed[: len(expected)], expected)

    put(copies, region.address + offsets, lengths, other)
    done = 0
    for at, length in columns:
        content[at : at + length] = other[done : done + length]
        done += length
    assert np.array_equal(content_of(copies, region), content)


def test_copies_of_one_direction_end_in_order(copies: Copies) -> None:
    region = copies.allocate(SIZE)
    start, length = np.array([region.address]), np.array([SIZE])
    sources = [pinned(copies, noise(SIZE + i)[:SIZE]) for i in range(4)]
    marks = [copies.scatter(start, length, source) for source in sources]
    marks[-1].wait()
    assert all(mark.reached() for mark in marks)
    assert np.array_equal(content_of(copies, region), sources[-1])


def test_nothing_is_copied_of_no_pieces(copies: Copies) -> None:
    none = np.zeros(0, np.int64)
    for mark in (copies.gather(none, none, copies.pinned(1)), copies.scatter(none, none, copies.pinned(1))):
        mark.wait()
        assert mark.reached()


def test_pieces_must_fit_into_the_packed_bytes(copies: Copies) -> None:
    region, packed = copies.allocate(SIZE), copies.pinned(SIZE)
    for copy in (copies.gather, copies.scatter):
        with pytest.raises(TransferError, match="do not fit"):
            copy(np.array([region.address] * 2), np.array([SIZE, 1]), packed)


def test_a_mark_is_reached_when_what_was_launched_before_has_ended(copies: Copies) -> None:
    mark = copies.mark()
    mark.wait()
    assert mark.reached()


def test_memory_says_what_it_is(copies: Copies) -> None:
    region = copies.allocate(SIZE)
    assert region.memory == copies.memory
    assert region.memory.on_host is isinstance(copies, HostCopies)
    assert str(copies.memory) in (str(HOST), "memory of GPU 0")


def test_tests_see_memory_of_a_device_as_an_array(copies: Copies) -> None:
    size = CHUNK_BYTES + 5
    content, region = noise(size), copies.allocate(size)
    seen = DeviceBytes(copies, region)
    seen[:] = content
    content[3:9] = seen[3:9] = 7
    content[-1] = seen[size - 1] = 1
    assert np.array_equal(seen, content)
    assert (seen[-1000:] == content[-1000:]).all()
    assert (seen == content).all()
    assert not (seen != content).any()
    assert seen[4] == 7
    assert len(seen[5:5]) == 0
    assert checksum(seen) == checksum(content)


def test_memory_of_the_caller_is_pinned_for_a_while(copies: Copies) -> None:
    memory, region = mmap.mmap(-1, SIZE), filled(copies, noise(SIZE))
    packed = np.frombuffer(memory, np.uint8)
    for _ in range(2):
        unpin = copies.pin(packed)
        packed[:] = 0
        copies.gather(np.array([region.address]), np.array([SIZE]), packed).wait()
        assert np.array_equal(packed, noise(SIZE))
        unpin()


def test_closing_twice_is_closing_once(copies: Copies) -> None:
    copies.close()
