"""What the apiserver is told of a request that vLLM ends with an error."""

import pytest
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics

from llmserve.core.request import Acceptance, EngineOutput
from llmserve.engines.vllm.convert import to_engine_output


def converted(reason: FinishReason, *, ungrammatical: bool) -> EngineOutput:
    output = EngineCoreOutput(request_id="r", new_token_ids=[], finish_reason=reason)
    return to_engine_output(output, ungrammatical=ungrammatical)


def test_a_grammar_that_does_not_compile_is_the_request_s_fault() -> None:
    assert converted(FinishReason.ERROR, ungrammatical=True).error.startswith("InvalidRequest: ")


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT])
def test_what_is_no_error_says_none(reason: FinishReason) -> None:
    assert converted(reason, ungrammatical=True).error == ""


def test_what_became_of_proposals_is_counted_over_all_steps() -> None:
    counted = RequestSpecDecodeMetrics.new(3)
    for proposed, accepted in ((3, 3), (3, 0), (2, 1)):
        counted.observe(proposed, accepted)
    output = EngineCoreOutput(request_id="r", new_token_ids=[], spec_decode_metrics=counted)
    assert to_engine_output(output).acceptance == Acceptance(3, 8, 4)
    none = EngineCoreOutput(
        request_id="r", new_token_ids=[], spec_decode_metrics=RequestSpecDecodeMetrics.new(3)
    )
    assert to_engine_output(none, switched_off=True).acceptance == Acceptance(0, 0, 0, switched_off=True)
    assert to_engine_output(EngineCoreOutput(request_id="r", new_token_ids=[])).acceptance is None


def test_any_other_error_may_be_tried_elsewhere() -> None:
    assert ":" not in converted(FinishReason.ERROR, ungrammatical=False).error
