"""What vLLM is asked for by role when engines speculate, and how it verifies on a CPU."""

import inspect
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.sample import rejection_sampler
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

from llmserve.config.schema import EngineConfig, KvCacheConfig, Speculation, TransferConfig
from llmserve.core.ids import WorkerId
from llmserve.core.request import WorkerRole
from llmserve.engines.connector import verifying
from llmserve.engines.spec import EngineSpec
from llmserve.engines.vllm import args
from llmserve.engines.vllm.args import engine_args
from tests.support.tiny_llama import make_tiny_llama

PREFILL, DECODE, BOTH = WorkerRole.PREFILL, WorkerRole.DECODE, WorkerRole.AGGREGATED


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    return EngineSpec(
        worker_id=WorkerId("w"),
        epoch=1,
        role=DECODE,
        model_dir=make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model", seed=1),
        model_name="tiny",
        model_identity="rev",
        engine=EngineConfig(max_decode_concurrency=8),
        kv_cache=KvCacheConfig(memory_gb=0.01),
        transfer=TransferConfig(),
    )


def asked(spec: EngineSpec) -> dict[str, Any] | None:
    made = engine_args(spec, "ipc:///x", "card.json")
    assert made.per_request_spec_decode_metrics == ("summary" if made.speculative_config else "none")
    config: dict[str, Any] | None = made.speculative_config
    return config


@pytest.mark.parametrize(("role", "proposed"), [(PREFILL, None), (DECODE, [[1, 8, 5]]), (BOTH, [[1, 8, 5]])])
def test_ngram_is_for_those_that_decode(
    spec: EngineSpec, role: WorkerRole, proposed: list[list[int]] | None
) -> None:
    speculation = Speculation(method="ngram", tokens=5, lookup_min=1, lookup_max=3)
    expected = {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "num_speculative_tokens_per_batch_size": proposed,
        "prompt_lookup_min": 1,
        "prompt_lookup_max": 3,
    }
    assert asked(replace(spec, role=role, speculation=speculation)) == (expected if proposed else None)


@pytest.mark.parametrize(
    ("adaptive", "places", "proposed"),
    [(True, 8, [[1, 7, 3], [8, 8, 0]]), (True, 1, [[1, 1, 3]]), (False, 8, [[1, 8, 3]])],
)
def test_on_a_gpu_there_are_graphs_for_proposals_and_for_none(
    spec: EngineSpec,
    monkeypatch: pytest.MonkeyPatch,
    adaptive: bool,
    places: int,
    proposed: list[list[int]],
) -> None:
    """The switch may choose either, for any number of requests."""
    monkeypatch.setattr(args, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    engine = spec.engine.model_copy(update={"max_decode_concurrency": places})
    found = asked(replace(spec, engine=engine, speculation=Speculation(method="ngram", adaptive=adaptive)))
    assert found is not None
    assert found["num_speculative_tokens_per_batch_size"] == proposed


@pytest.mark.parametrize(("role", "tokens"), [(PREFILL, 0), (DECODE, 3), (BOTH, 3)])
def test_prefill_computes_the_draft_s_kv_and_proposes_nothing(
    spec: EngineSpec, role: WorkerRole, tokens: int
) -> None:
    drafting = replace(
        spec,
        role=role,
        speculation=Speculation(method="draft"),
        draft_dir=spec.model_dir,
        draft_identity="small",
    )
    assert asked(drafting) == {
        "method": "draft_model",
        "num_speculative_tokens": 3,
        "num_speculative_tokens_per_batch_size": [[1, 8, tokens]],
        "model": str(spec.model_dir),
    }
    config = engine_args(drafting, "ipc:///x", "card.json").create_engine_config().speculative_config
    assert config is not None
    assert config.method == "draft_model"
    schedule = config.num_speculative_tokens_per_batch_size
    assert build_dynamic_sd_schedule_lookup(schedule, 8, 3)[1:] == [tokens] * 8


@pytest.mark.parametrize(
    ("architecture", "method"), [("LlamaForCausalLM", "eagle"), ("LlamaForCausalLMEagle3", "eagle3")]
)
@pytest.mark.parametrize("role", [PREFILL, DECODE, BOTH])
def test_which_kind_of_head_it_is(
    spec: EngineSpec, tmp_path: Path, architecture: str, method: str, role: WorkerRole
) -> None:
    (tmp_path / "config.json").write_text(f'{{"architectures": ["{architecture}"]}}')
    found = asked(replace(spec, role=role, speculation=Speculation(method="eagle"), draft_dir=tmp_path))
    assert found is not None
    assert (found["method"], found["model"]) == (method, str(tmp_path))


@pytest.mark.parametrize(("role", "tokens"), [(PREFILL, 0), (DECODE, 3), (BOTH, 3)])
def test_layers_of_the_model_are_used_on_prefill_as_well(
    spec: EngineSpec, role: WorkerRole, tokens: int
) -> None:
    assert asked(replace(spec, role=role, speculation=Speculation(method="mtp"))) == {
        "method": "mtp",
        "num_speculative_tokens": 3,
        "num_speculative_tokens_per_batch_size": [[1, 8, tokens]],
    }


def test_without_speculation_vllm_is_asked_for_none(spec: EngineSpec) -> None:
    assert asked(spec) is None


def test_kv_is_named_by_the_draft_as_well(spec: EngineSpec) -> None:
    names = {replace(spec, draft_identity=draft).kv_identity for draft in ("", "a", "b")}
    assert len(names) == 3
    assert spec.kv_identity == "rev"


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_values_of_requests_are_repeated_for_each_of_their_tokens(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through vLLM's module, in the types that it has: of a temperature, a top_k and a seed."""
    _install(monkeypatch)
    values = torch.tensor([2, 0, 7, 5], dtype=dtype)
    ends = torch.tensor([2, 5, 5, 6], dtype=torch.int32)
    expanded = rejection_sampler.expand_batch_to_tokens(values, ends, 6, replace_from=0, replace_to=1)
    assert expanded.tolist() == [2, 2, 1, 1, 1, 5]
    assert expanded.dtype == dtype


def _install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("expand_batch_to_tokens", "apply_sampling_constraints"):
        monkeypatch.setattr(rejection_sampler, name, getattr(rejection_sampler, name))
    verifying.install("cpu", rejection_sampler)


@pytest.mark.parametrize("proposals", [0, 1, 3])
def test_a_step_without_proposals_has_nothing_to_constrain(
    monkeypatch: pytest.MonkeyPatch, proposals: int
) -> None:
    _install(monkeypatch)
    request = SimpleNamespace(
        all_greedy=False, temperature=torch.tensor([0.5]), top_k=torch.tensor([2]), top_p=None
    )
    logits, ends = torch.tensor([[1.0, 2.0, 3.0]]).repeat(proposals, 1), torch.tensor([proposals])
    constrained = rejection_sampler.apply_sampling_constraints(logits, ends, request)
    assert constrained.tolist() == [[-math.inf, 4.0, 6.0]] * proposals


def test_temperatures_keep_their_fractions() -> None:
    ends = torch.tensor([1, 3], dtype=torch.int32)
    temperatures = torch.tensor([0.25, 0.75])
    assert verifying.expand_batch_to_tokens(temperatures, ends, 3).tolist() == [0.25, 0.75, 0.75]


def test_vllm_asks_as_we_expect() -> None:
    """It calls the function by its name in its module, and nobody else imports it."""
    theirs = inspect.signature(rejection_sampler.expand_batch_to_tokens)
    assert list(theirs.parameters) == list(inspect.signature(verifying.expand_batch_to_tokens).parameters)
    assert "expand_batch_to_tokens(" in inspect.getsource(rejection_sampler.apply_sampling_constraints)
