import pytest

from llmserve.apiserver.http.headers import check_request_id, request_id_of, without_unusable
from llmserve.core.errors import InvalidRequest


def test_the_clients_is_kept() -> None:
    assert request_id_of([(b"host", b"x"), (b"x-request-id", b"a-B_1.2:3")]) == "a-B_1.2:3"


@pytest.mark.parametrize("given", [b"", b"two words", b"a\nb", b"x" * 129, b"\xff", b"<b>"])
def test_one_that_is_not_plain_is_replaced(given: bytes) -> None:
    made = request_id_of([(b"x-request-id", given)])
    assert len(made) == 32
    assert made != request_id_of([])


def test_what_vllm_sees_of_the_headers() -> None:
    host, plain, forged = (b"host", b"x"), (b"x-request-id", b"a-1"), (b"x-request-id", b"a\x1b[31m")
    assert without_unusable([host, plain]) == [host, plain]
    assert without_unusable([host, forged]) == [host]


@pytest.mark.parametrize("given", ["chatcmpl-", "cmpl-" + "x" * 128 + "-0", "resp_1.2:3"])
def test_plain_ids_are_taken(given: str) -> None:
    check_request_id(given)


@pytest.mark.parametrize("given", ["cmpl-a\nb", "cmpl-\x1b[31m", "cmpl-\x00", "cmpl-" + "x" * 20_000, ""])
def test_other_ids_are_refused_with_the_field(given: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_request_id(given)
    assert refused.value.field == "request_id"
    assert "\n" not in refused.value.message
