import pytest

from llmserve.apiserver.request_ids import request_id_of


def test_the_clients_is_kept() -> None:
    assert request_id_of([(b"host", b"x"), (b"x-request-id", b"a-B_1.2:3")]) == "a-B_1.2:3"


@pytest.mark.parametrize("given", [b"", b"two words", b"a\nb", b"x" * 129, b"\xff", b"<b>"])
def test_one_that_is_not_plain_is_replaced(given: bytes) -> None:
    made = request_id_of([(b"x-request-id", given)])
    assert len(made) == 32
    assert made != request_id_of([])
