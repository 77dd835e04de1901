"""The versions of orders: they change with the orders, and differ from those of other terms."""

import pytest

from llmserve.core.adapters import AdapterOrder
from llmserve.core.ids import AdapterDigest, WorkerId
from llmserve.router.adapters.orders import OrderBoard

A, B = WorkerId("decode-0"), WorkerId("decode-1")
ORDER = AdapterOrder(1, "dir:/sql")


@pytest.fixture
def board() -> OrderBoard:
    board = OrderBoard()
    board.follow([A, B])
    return board


def test_each_change_is_a_new_version_of_one_worker(board: OrderBoard) -> None:
    assert (board.version(A), board.version(B)) == (1, 2)
    board.put(A, 1, ORDER)
    assert (board.version(A), board.version(B)) == (3, 2)
    board.put(A, 1, ORDER)
    assert board.version(A) == 3, "nothing has changed"
    board.put(A, 1, None)
    assert (board.version(A), board.orders(A)) == (4, ())


def test_versions_of_a_term_are_larger_than_its_number() -> None:
    board = OrderBoard()
    board.begin(1000)
    board.begin(10)
    board.follow([A])
    assert board.version(A) == 1001


def test_who_left_is_forgotten_and_begins_anew(board: OrderBoard) -> None:
    board.put(A, 1, ORDER)
    board.follow([B])
    assert (board.version(A), board.orders(A), board.given(A, 1)) == (0, (), False)
    board.follow([A, B])
    assert (board.version(A), board.orders(A), board.version(B)) == (4, (), 2)


def test_digests_to_compute_are_counted(board: OrderBoard) -> None:
    assert (board.unresolved(A), board.given(A, 1)) == (0, False)
    board.put(A, 1, ORDER)
    board.put(A, 2, AdapterOrder(2, "dir:/chat", AdapterDigest("ab")))
    assert (board.unresolved(A), board.given(A, 1), board.given(B, 1)) == (1, True, False)
    board.put(A, 1, AdapterOrder(1, "dir:/sql", AdapterDigest("cd")))
    assert board.unresolved(A) == 0
