import numpy as np
import pytest

from llmserve.apiserver.request.retry import Replay
from llmserve.core.errors import StreamLost
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput, FinishReason, Logprobs


def output(*tokens: int, end: FinishReason | None = None, logprobs: Logprobs | None = None) -> EngineOutput:
    return EngineOutput(RequestId("r"), tokens, finish_reason=end, logprobs=logprobs)


def unseen(replay: Replay, *outputs: EngineOutput) -> list[int]:
    passed = [replay.unseen(one) for one in outputs]
    return [token for one in passed if one is not None for token in one.token_ids]


def test_what_the_user_has_is_not_passed_on() -> None:
    assert unseen(Replay([1, 2, 3]), output(1), output(2), output(3), output(4), output(5)) == [4, 5]


def test_an_output_that_reaches_beyond_is_cut() -> None:
    ids, values = np.arange(6, dtype="<i4").reshape(3, 2), np.arange(6, dtype="<f4").reshape(3, 2)
    logprobs = Logprobs(2, ids.tobytes(), values.tobytes(), np.arange(3, dtype="<i4").tobytes())
    replay = Replay([1, 2])
    passed = replay.unseen(output(1, 2, 3, logprobs=logprobs))
    assert passed is not None
    assert passed.token_ids == (3,)
    assert passed.logprobs == Logprobs(2, ids[2:].tobytes(), values[2:].tobytes(), b"\2\0\0\0")


def test_an_end_right_after_what_was_sent_is_passed_on() -> None:
    passed = Replay([1, 2]).unseen(output(1, 2, end=FinishReason.STOP))
    assert passed is not None
    assert (passed.token_ids, passed.finish_reason) == ((), FinishReason.STOP)


def test_outputs_without_tokens_are_not_passed_on() -> None:
    assert Replay([1]).unseen(output()) is None


def test_another_token_is_an_error() -> None:
    replay = Replay([1, 2, 3])
    replay.unseen(output(1))
    with pytest.raises(StreamLost, match="something else after 1 tokens"):
        replay.unseen(output(9))


def test_an_earlier_end_is_an_error() -> None:
    with pytest.raises(StreamLost, match="ends after 2 of 3"):
        Replay([1, 2, 3]).unseen(output(1, 2, end=FinishReason.LENGTH))
