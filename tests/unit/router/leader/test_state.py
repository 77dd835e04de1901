"""The shared state in memory, to the second. tests/conformance/test_shared_state.py has its contract."""

import time

import pytest

from llmserve.core.clock import VirtualClock
from llmserve.router.leader.state import MemoryState, Saved, Term

A, B = "10.0.0.1:7000", "10.0.0.2:7000"
LEASE_SECONDS = 10.0


@pytest.fixture
def state(clock: VirtualClock) -> MemoryState:
    return MemoryState(clock)


async def _begun(state: MemoryState, leader: str = A) -> Term:
    term = await state.campaign(leader, LEASE_SECONDS)
    assert isinstance(term, Term)
    return term


async def test_a_lease_keeps_others_off_until_it_has_ended(state: MemoryState, clock: VirtualClock) -> None:
    await _begun(state)
    clock.advance(LEASE_SECONDS - 1.0)
    assert await state.campaign(B, LEASE_SECONDS) == A
    clock.advance(1.0)
    assert (await _begun(state, B)).leader == B


async def test_a_renewed_lease_lasts_from_then_on(state: MemoryState, clock: VirtualClock) -> None:
    term = await _begun(state)
    clock.advance(LEASE_SECONDS + 1.0)
    assert await state.renew(term, LEASE_SECONDS) is True, "nobody led meanwhile"
    clock.advance(LEASE_SECONDS - 1.0)
    assert await state.campaign(B, LEASE_SECONDS) == A


async def test_a_lease_is_not_renewed_after_a_newer_term(state: MemoryState, clock: VirtualClock) -> None:
    older = await _begun(state)
    clock.advance(LEASE_SECONDS)
    newer = await _begun(state, B)
    assert await state.renew(older, LEASE_SECONDS) is False
    assert await state.campaign(A, LEASE_SECONDS) == B
    assert await state.renew(newer, LEASE_SECONDS) is True


async def test_who_resigns_ends_its_own_lease_only(state: MemoryState, clock: VirtualClock) -> None:
    older = await _begun(state)
    clock.advance(LEASE_SECONDS)
    newer = await _begun(state, B)
    await state.resign(older)
    assert await state.campaign(A, LEASE_SECONDS) == B
    await state.resign(newer)
    assert (await _begun(state)).leader == A


async def test_numbers_start_at_the_time_in_milliseconds(
    state: MemoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 7_000_000_000)
    assert (await _begun(state)).epoch == 7000


async def test_numbers_grow_by_one_while_the_time_stands_still(
    state: MemoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    for expected in (1, 2, 3):
        term = await _begun(state)
        assert term.epoch == expected
        await state.resign(term)


async def test_what_the_leader_saved_is_loaded_with_its_age(state: MemoryState, clock: VirtualClock) -> None:
    assert await state.load() is None
    term = await _begun(state)
    assert await state.save(term, "text") is True
    clock.advance(3.0)
    assert await state.load() == Saved("text", 3.0)


async def test_only_the_leader_saves(state: MemoryState, clock: VirtualClock) -> None:
    older = await _begun(state)
    assert await state.save(Term(older.epoch + 1, B), "of nobody") is False
    clock.advance(LEASE_SECONDS)
    assert await state.save(older, "at the end of the lease") is False
    newer = await _begun(state, B)
    assert await state.save(older, "of an older term") is False
    assert await state.load() is None
    assert await state.save(newer, "of this term") is True
