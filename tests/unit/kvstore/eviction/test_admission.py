from llmserve.core.ids import BlockHash
from llmserve.kvstore.eviction import Admission, FrequencySketch
from llmserve.kvstore.eviction.admission import is_admitted


def _blocks(name: str, count: int) -> list[BlockHash]:
    return [BlockHash(f"{name}/{number}".encode()) for number in range(count)]


def _admission() -> Admission:
    return Admission(FrequencySketch(4096))


def test_a_prompt_that_comes_once_is_not_proven() -> None:
    admission = _admission()
    assert admission.observe(_blocks("a", 5)) == 0
    assert admission.observe(_blocks("b", 5)) == 0
    assert admission.observe([]) == 0


def test_a_prompt_that_comes_twice_is_proven() -> None:
    admission = _admission()
    admission.observe(_blocks("a", 5))
    assert admission.observe(_blocks("a", 5)) == 5


def test_the_next_turn_of_a_conversation_is_proven_whole() -> None:
    admission = _admission()
    admission.observe(_blocks("a", 5))
    assert admission.observe(_blocks("a", 8)) == 8
    assert admission.observe(_blocks("a", 11)) == 11


def test_behind_a_system_prompt_a_first_turn_is_new_and_a_second_is_not() -> None:
    admission, system = _admission(), _blocks("system", 4)
    for user in range(20):
        admission.observe([*system, *_blocks(f"u{user}", 3)])
    assert admission.observe([*system, *_blocks("late", 3)]) == 4
    assert admission.observe([*system, *_blocks("late", 6)]) == 10


def test_the_last_block_that_was_asked_for_before_tells_a_conversation() -> None:
    admission, system = _admission(), _blocks("system", 4)
    for user in range(20):
        admission.observe([*system, *_blocks(f"u{user}", 1)])
    assert admission.observe([*system, *_blocks("u0", 4)]) == 8, "the block before is shared by all"


def test_room_admits_what_is_not_proven() -> None:
    assert is_admitted(proven=False, has_room=True)
    assert is_admitted(proven=True, has_room=False)
    assert not is_admitted(proven=False, has_room=False)


def test_new_blocks_are_rarely_taken_for_known_ones() -> None:
    sketch = FrequencySketch(4096)
    known = [(sketch.add(_blocks(f"k{round_}", 256)) > 1).mean() for round_ in range(160)]
    assert max(known) < 0.06
    assert sum(known) / len(known) < 0.03


def test_counts_grow_and_saturate() -> None:
    sketch, keys = FrequencySketch(4096), _blocks("k", 1)
    assert [int(sketch.add(keys)[0]) for _ in range(4)] == [1, 2, 3, 4]
    for _ in range(400):
        sketch.add(keys)
    assert int(sketch.counts(keys)[0]) == 255
    assert int(sketch.add(keys)[0]) == 255


def test_each_block_has_a_count() -> None:
    sketch, (a, b, c) = FrequencySketch(4096), _blocks("k", 3)
    sketch.add([a, b])
    sketch.add([b])
    assert sketch.counts([a, b, c]).tolist() == [1, 2, 0]


def test_counts_are_halved_after_as_many_new_blocks_as_are_remembered() -> None:
    sketch, first = FrequencySketch(32), _blocks("first", 1)
    sketch.add([*first, *_blocks("more", 30)])
    assert int(sketch.counts(first)[0]) == 1
    sketch.add(_blocks("last", 1))
    assert int(sketch.counts(first)[0]) == 0


def test_what_was_asked_for_once_is_forgotten_in_time() -> None:
    sketch, once, often = FrequencySketch(1024), _blocks("once", 1), _blocks("often", 1)
    sketch.add(once)
    for _ in range(100):
        sketch.add(often)
    sketch.add(_blocks("new", 500))
    assert int(sketch.counts(once)[0]) == 1
    sketch.add(_blocks("newer", 600))
    assert int(sketch.counts(once)[0]) == 0
    assert int(sketch.counts(often)[0]) == 50


def test_memory_is_eight_bytes_a_block() -> None:
    assert FrequencySketch(1 << 20).memory_bytes == 8 << 20


def test_from_eight_uses_on_a_block_is_shared_by_many() -> None:
    """The eighth use of a beginning says nothing about what follows it; the seventh still does."""
    for uses, proven in ((7, 6), (8, 2)):
        admission = _admission()
        for number in range(uses - 1):
            admission.observe([*_blocks("start", 2), *_blocks(f"own{number}", 1)])
        assert admission.observe([*_blocks("start", 2), *_blocks("new", 4)]) == proven


def test_a_small_sketch_has_room_for_collisions() -> None:
    sizes = {blocks: FrequencySketch(blocks).memory_bytes for blocks in (1, 32, 33)}
    assert sizes == {1: 4 * 64, 32: 4 * 64, 33: 4 * 128}
