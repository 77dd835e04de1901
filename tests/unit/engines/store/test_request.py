"""What is kept of the store's answers about one request."""

from collections.abc import Mapping

from llmserve.engines.store.link import StoreQuery
from llmserve.engines.store.links import LocatedBlock, PromptAnswer, StoreLease
from llmserve.engines.store.request import StoreRequest
from llmserve.kvstore.blocks import Slot

HASHES = (b"a", b"b", b"c", b"d")
QUESTION = StoreQuery("r", "red", HASHES, 0, load=True, compute_seconds=0.1, timeout_seconds=1.0)


def _block(manager: str, arena: str = "first") -> LocatedBlock:
    return LocatedBlock(manager, arena, (Slot(),))


def _answer(arenas: Mapping[str, str], loads: Mapping[int, str] = {}, until: float = 9.0) -> PromptAnswer:
    leases = [StoreLease(name, "first", f"lease-{name}") for name in dict.fromkeys(loads.values())]
    placed = {at: _block(name) for at, name in loads.items()}
    return PromptAnswer(QUESTION, arenas, placed, leases, {3: _block("kv-0")}, until)


def _asked(questions: int = 2) -> StoreRequest:
    return StoreRequest("red", 0, open_questions=questions)


def test_answers_add_up_and_the_shortest_time_counts() -> None:
    request = _asked()
    request.note(_answer({"kv-0": "first"}, {0: "kv-0"}, until=7.0))
    request.note(_answer({"kv-0": "first"}, {1: "kv-0"}))
    assert (set(request.loads), set(request.stores)) == ({b"a", b"b"}, {b"d"})
    assert (request.usable_until, request.open_questions) == (7.0, 0)


def test_blocks_in_memory_that_is_gone_are_dropped_with_their_leases() -> None:
    request = _asked()
    request.note(_answer({"kv-0": "first", "kv-1": "first"}, {0: "kv-0", 1: "kv-1"}))
    request.note(PromptAnswer(QUESTION, {"kv-0": "restarted"}))
    assert set(request.loads) == {b"b"}
    assert [lease.manager for lease in request.leases] == ["kv-1"]
    assert request.stores == {}


def test_what_is_taken_is_held_no_more() -> None:
    request = _asked()
    request.note(_answer({"kv-0": "first"}, {0: "kv-0"}))
    leases, loads = request.take_loads()
    assert ([lease.lease_id for lease in leases], set(loads)) == (["lease-kv-0"], {b"a"})
    assert request.take_stores([b"d"]) == [_block("kv-0")]
    assert (request.loads, request.leases, request.stores) == ({}, [], {})


def test_a_window_is_asked_about_from_the_end_of_what_there_is_to_load() -> None:
    """It sees two blocks. Three can be loaded where all is seen, and two once only two are in front of the
    last token."""
    for most_loads, have in ((9, 1), (2, 0)):
        request = StoreRequest("red", 0, most_loads, open_questions=2, about_windows=[(1, QUESTION)])
        answer = _answer({"kv-0": "first"}, {0: "kv-0", 1: "kv-0", 2: "kv-0"})
        (question,) = request.take_window_questions(answer, lambda group: 2)
        assert question.have_blocks == have
        assert request.about_windows == []


def test_a_request_whose_answer_is_too_old_is_asked_again() -> None:
    request = _asked(1)
    request.may_load, request.asked_tokens = False, 64
    request.note(_answer({"kv-0": "first"}))
    request.ask_again()
    assert (request.may_load, request.asked_tokens, request.stores) == (True, 0, {})
    assert request.usable_until == float("inf")
