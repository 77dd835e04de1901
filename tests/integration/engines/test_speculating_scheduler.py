"""vLLM's own scheduler proposes tokens only while that pays: its steps, with a model that is played."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from llmserve.config.load import load_manifest
from llmserve.config.schema import Speculation
from llmserve.core.clock import Clock, ProcessClock, SystemClock, VirtualClock
from llmserve.engines.speculation import scheduler as under_test
from llmserve.engines.speculation.scheduler import SPECULATION, SpeculatingScheduler
from llmserve.engines.vllm.args import set_scheduler
from llmserve.models import resolve

K, BLOCK, BLOCKS, MOST = 3, 16, 64, 4
MANIFEST = Path(__file__).parents[3] / "llmserve.yaml"
Schedule = list[list[int]]


@pytest.fixture(scope="module")
def make_config() -> Callable[[Schedule], VllmConfig]:
    model = str(resolve(load_manifest(MANIFEST).model).path)

    def make(schedule: Schedule) -> VllmConfig:
        ngram = {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4}
        table = {"num_speculative_tokens": K, "num_speculative_tokens_per_batch_size": schedule}
        args = EngineArgs(
            model=model, max_model_len=2048, max_num_seqs=MOST, speculative_config=ngram | table
        )
        config = args.create_engine_config()
        config.cache_config.num_gpu_blocks = BLOCKS
        return config

    return make


@dataclass
class Played:
    """A model that accepts this many of the proposed tokens, and its scheduler. A step takes a second, and
    `seconds` more for each request with proposals."""

    scheduler: Any
    clock: VirtualClock
    accepted: int
    seconds: float
    verified: list[int] = field(default_factory=list)  # by each step, of all requests
    reports: list[Any] = field(default_factory=list)

    def add(self, name: str) -> None:
        init_none_hash(sha256_cbor)
        request = Request(
            request_id=name,
            prompt_token_ids=[*range(3, 11)],
            sampling_params=SamplingParams(max_tokens=1000, ignore_eos=True),
            pooling_params=None,
            block_hasher=get_request_block_hasher(BLOCK, sha256_cbor),
        )
        self.scheduler.add_request(request)

    def run(self, steps: int) -> "Played":
        for _ in range(steps):
            self._step()
        return self

    def _step(self) -> None:
        planned = self.scheduler.schedule()
        verified = planned.scheduled_spec_decode_tokens
        self.verified.append(sum(map(len, verified.values())))
        self.clock.advance(1.0 + self.seconds * len(verified))
        names = list(planned.num_scheduled_tokens)
        tokens = [[7] * (1 + min(self.accepted, len(verified.get(name, ())))) for name in names]
        outcome = ModelRunnerOutput(names, {name: at for at, name in enumerate(names)}, tokens)
        outputs = self.scheduler.update_from_output(planned, outcome)
        proposed = [[7] * planned.num_spec_tokens_to_schedule for _ in names]
        self.scheduler.update_draft_token_ids(DraftTokenIds(names, proposed))
        stats = [one.scheduler_stats for one in outputs.values() if one.scheduler_stats]
        self.reports += [one.kv_connector_stats[SPECULATION] for one in stats if one.kv_connector_stats]


@pytest.fixture
def play(
    make_config: Callable[[Schedule], VllmConfig], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Played]:
    def start(schedule: Schedule, accepted: int, seconds: float) -> Played:
        clock, config = VirtualClock(), make_config(schedule)
        monkeypatch.setattr(under_test, "step_clock", lambda ranks: clock)
        layer = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=8, dtype=torch.bfloat16)
        cache = KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer.0"], layer)])
        scheduler = SpeculatingScheduler(
            config, cache, StructuredOutputManager(config), block_size=BLOCK, log_stats=True
        )
        played = Played(scheduler, clock, accepted, seconds)
        played.add("a")
        return played

    return start


def test_steps_propose_while_it_pays(play: Callable[..., Played]) -> None:
    played = play([[1, MOST, K]], accepted=2, seconds=1.0).run(130)
    ((batch, proposes, gain, steps),) = played.reports[-1]
    assert (batch, proposes, steps) == (1, True, 130)
    assert gain == pytest.approx(1.5)
    assert played.verified[-1] == K


def test_steps_stop_proposing_where_it_does_not(play: Callable[..., Played]) -> None:
    played = play([[1, MOST, K]], accepted=1, seconds=2.0).run(90)
    assert played.verified[4] == K
    assert set(played.verified[30:]) == {0}
    ((_, proposes, gain, _),) = played.reports[-1]
    assert (proposes, gain) == (False, pytest.approx(2 / 3))


def test_each_batch_size_is_judged_by_itself(play: Callable[..., Played]) -> None:
    played = play([[1, MOST, K]], accepted=2, seconds=1.5).run(130)
    played.add("b")
    played.run(130)
    assert [(batch, proposes) for batch, proposes, *_ in played.reports[-1]] == [(1, True), (2, False)]
    assert played.verified[-1] == 0


@pytest.mark.parametrize(
    ("schedule", "switched"), [([[1, MOST, K]], False), ([[1, MOST - 1, K], [MOST, MOST, 0]], True)]
)
def test_on_a_gpu_only_a_schedule_with_zero_is_switched(
    play: Callable[..., Played], monkeypatch: pytest.MonkeyPatch, schedule: Schedule, switched: bool
) -> None:
    """For other numbers of tokens it has no CUDA graphs."""
    monkeypatch.setattr(under_test, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    played = play(schedule, accepted=0, seconds=1.0).run(90)
    assert (played.verified[-1] == 0) is switched
    assert bool(played.reports) is switched


@pytest.mark.parametrize(
    ("on_cpu", "ranks", "clock"),
    [(True, 1, ProcessClock), (True, 2, SystemClock), (False, 1, SystemClock)],
)
def test_steps_take_the_processs_own_time_where_they_are_computed_in_it(
    monkeypatch: pytest.MonkeyPatch, on_cpu: bool, ranks: int, clock: type[Clock]
) -> None:
    monkeypatch.setattr(under_test, "current_platform", SimpleNamespace(is_cpu=lambda: on_cpu))
    assert type(under_test.step_clock(ranks)) is clock


@pytest.mark.parametrize(
    ("schedule", "is_async", "adaptive", "name"),
    [
        ([[1, MOST, K]], False, True, "SpeculatingScheduler"),
        ([[1, MOST, K]], True, True, "AsyncSpeculatingScheduler"),
        ([[1, MOST, 0]], False, True, None),
        ([[1, MOST, K]], False, False, None),
    ],
)
def test_an_engine_that_proposes_gets_the_scheduler(
    make_config: Callable[[Schedule], VllmConfig],
    schedule: Schedule,
    is_async: bool,
    adaptive: bool,
    name: str | None,
) -> None:
    config = make_config(schedule)
    config.scheduler_config.async_scheduling = is_async
    set_scheduler(config, Speculation(method="ngram", adaptive=adaptive))
    chosen = config.scheduler_config.scheduler_cls
    assert chosen == (f"{under_test.__name__}.{name}" if name else None)
    if name:
        assert config.scheduler_config.get_scheduler_cls() is getattr(under_test, name)
