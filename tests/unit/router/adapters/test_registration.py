"""One registration: its pauses, and which errors end it."""

import pytest

from llmserve.core.ids import WorkerId
from llmserve.router.adapters.registration import AdapterWish, Registration, is_final
from llmserve.router.adapters.snapshot import AdapterSnapshot

WORKER = WorkerId("decode-0")


def test_pauses_double_up_to_a_minute() -> None:
    registration = Registration(1, "m", AdapterWish("sql", "dir:/sql"))
    pauses = []
    for _ in range(8):
        registration.pause(WORKER, 100.0, "away")
        pauses.append(registration.pauses[WORKER].until - 100.0)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_pauses_have_no_end_but_a_bound() -> None:
    registration = Registration(1, "m", AdapterWish("sql", "dir:/sql"))
    for _ in range(2000):
        registration.pause(WORKER, 0.0, "away")
    assert registration.pauses[WORKER].until == 60.0


def test_what_is_not_said() -> None:
    registration = Registration(1, "m", AdapterWish("sql", "dir:/sql"))
    assert (registration.rank, registration.size_bytes) == (0, 0)
    assert AdapterSnapshot().last_number == 0


@pytest.mark.parametrize(
    ("error", "final"),
    [
        ("InvalidRequest", True),
        ("ModelNotFound", True),
        ("NotFound", True),
        ("Unavailable", False),
        ("DeadlineExceeded", False),
        ("LLMServeError", False),
        ("OfALaterRelease", False),
        ("ClassVar", False),
        ("", False),
    ],
)
def test_only_mistakes_are_final(error: str, final: bool) -> None:
    assert is_final(error) is final
