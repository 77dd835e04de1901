"""The order of vLLM's steps that hand-over relies on, read in the sources of the vLLM that is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest


def function_of(module: str, name: str) -> str:
    """The text of a function or method, the last of that name. module: is not imported."""
    vllm = find_spec("vllm")
    assert vllm is not None
    assert vllm.origin is not None
    file = Path(vllm.origin).parent / module
    _, found, rest = file.read_text().rpartition(f"def {name}(")
    assert found, f"{module} has no {name}"
    return rest.partition("\n    def ")[0]


@pytest.mark.parametrize(
    ("module", "function", "steps"),
    [
        (
            "v1/worker/gpu/model_runner.py",
            "execute_model",
            ("self.update_requests(", "self.kv_connector.pre_forward(", "run_fullgraph("),
        ),
        (
            "v1/worker/gpu/model_runner.py",
            "execute_model",
            ("self.kv_connector.pre_forward(scheduler_output, input_batch)", "self.model(**model_inputs)"),
        ),
        ("v1/worker/gpu/kv_connector.py", "pre_forward", ("bind_connector_metadata(", "_start_load_kv()")),
        (
            "model_executor/layers/attention/kv_transfer_utils.py",
            "wrapper",
            ("result = func(*args, **kwargs)", "connector.save_kv_layer("),
        ),
        ("v1/core/sched/scheduler.py", "schedule", ("skip_zeroing_group_ids=", "WAITING_FOR_REMOTE_KVS")),
    ],
)
def test_steps_come_in_this_order(module: str, function: str, steps: tuple[str, ...]) -> None:
    text = function_of(module, function)
    places = [text.find(step) for step in steps]
    assert -1 not in places, [step for step, at in zip(steps, places, strict=True) if at < 0]
    assert places == sorted(places)


def test_zeroing_and_copying_of_blocks_belong_to_the_update_of_requests() -> None:
    text = function_of("v1/worker/gpu/model_runner.py", "update_requests")
    assert "zero_block_ids(" in text
    assert "copy_kv_cache_blocks_inplace(" in text
