"""What of a sequence reaches vLLM's OutputProcessor, and when."""

from unittest.mock import patch

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from llmserve.apiserver.engine.output import OutputSink
from llmserve.core.ids import RequestId
from llmserve.core.request import EngineOutput, FinishReason, HandoverReport, Logprobs, PrefillStats

TOKENS = 200
WHOLE = SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY)


class PushedAnswer:
    """Its text is not made, so that it needs no tokenizer. processed: how often vLLM was called."""

    def __init__(self, params: SamplingParams) -> None:
        request = EngineCoreRequest("r", [1, 2], None, params, None, 0.0, None, None, None)
        request.external_req_id = "client's"
        self.processor = OutputProcessor(None, log_stats=False, stream_interval=1)
        self.queue = RequestOutputCollector(params.output_kind, "r")
        self.processor.add_request(request, None, None, 0, self.queue)
        self.handovers: list[HandoverReport] = []
        self.sink = OutputSink(request, self.processor, self.queue, self.handovers)
        self.processed = 0
        original = self.processor.process_outputs

        def counted(outputs: list[object]) -> object:
            self.processed += 1
            return original(outputs)

        patch.object(self.processor, "process_outputs", counted).start()

    def push(self, *tokens: int, **also: object) -> bool:
        return self.sink.push(EngineOutput(RequestId("r"), tokens, **also))  # type: ignore[arg-type]

    def result(self) -> tuple[list[int], str | None]:
        output = self.queue.get_nowait()
        return list(output.outputs[0].token_ids), output.outputs[0].finish_reason


def test_the_tokens_of_a_whole_answer_are_kept_and_passed_on_together_in_order() -> None:
    one = PushedAnswer(WHOLE)
    assert not any(one.push(token) for token in range(TOKENS - 1))
    assert one.processed < TOKENS / 50
    assert one.push(TOKENS - 1, finish_reason=FinishReason.LENGTH)
    assert one.result() == (list(range(TOKENS)), "length")


@pytest.mark.parametrize(
    "also",
    [
        {"logprobs": Logprobs(1, bytes(4), bytes(4), bytes(4))},
        {"prefill_stats": PrefillStats(2, 0, 0)},
        {"handover": HandoverReport("shm", 1, 0.1)},
    ],
)
def test_what_comes_with_a_token_does_not_wait(also: dict[str, object]) -> None:
    one = PushedAnswer(SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, logprobs=0))
    assert not one.push(5)
    assert not one.push(6, **also)
    assert one.processed == 1
    assert one.handovers == [value for name, value in also.items() if name == "handover"]
    one.sink.flush()
    assert one.processed == 1


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(output_kind=RequestOutputKind.DELTA),
        SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, stop=["x"]),
    ],
)
def test_a_stream_and_a_stop_string_need_each_token_at_once(params: SamplingParams) -> None:
    one = PushedAnswer(params)
    for token in range(3):
        one.push(token)
    assert one.processed == 3


def test_what_is_kept_is_in_the_answer_of_an_abort() -> None:
    one = PushedAnswer(WHOLE)
    one.push(5)
    one.push(6)
    one.sink.flush()
    one.processor.abort_requests(["client's"], internal=False)
    assert one.result() == ([5, 6], "abort")
