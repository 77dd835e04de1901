"""Speculative decoding on real vLLM, with tiny models in float32: whoever proposes tokens, and whatever
brings the KV of a prompt, an answer is that of the model alone. Every step proposes (`adaptive: false`)."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from llmserve.config.schema import EngineConfig, KvCacheConfig, Speculation, TransferConfig
from llmserve.core.ids import RequestId, WorkerId
from llmserve.core.request import EngineOutput, EngineRequest, SamplingLimits, WorkerRole
from llmserve.engines.base import Engine
from llmserve.engines.spec import EngineSpec
from tests.conformance.engine_pair import Harness, Pair, Push, numbers, tokens
from tests.support.chi_square import is_plausible
from tests.support.tiny_heads import make_tiny_mimo, make_tiny_pair
from tests.support.tiny_hybrid import greedy_answers
from tests.support.tiny_llama import MAX_MODEL_LEN, VOCAB, make_tiny_llama, token_chances

pytestmark = [
    pytest.mark.real_vllm,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

BLOCK, ANSWER = 32, 24
SETTLE_SECONDS = 15.0
LENGTHS = (1, 5, 31, 32, 33, 64, 100, 200)  # the last one is computed in two steps
_rng = random.Random(11)


def _prompt(length: int) -> list[int]:
    """It repeats itself, so that there is something to look up in it."""
    theme = [_rng.randrange(3, VOCAB) for _ in range(9)]
    return [theme[i % 9] if _rng.random() < 0.9 else _rng.randrange(3, VOCAB) for i in range(length)]


PROMPTS = {length: _prompt(length) for length in LENGTHS}
Answers = Mapping[int, list[int]]  # by the length of the prompt


@dataclass(frozen=True)
class Proposing:
    """model, speculation, draft: of both engines of a pair. accepted: at least this share of what is
    proposed."""

    model: Path
    speculation: Speculation
    draft: Path | None = None
    accepted: float = 0.0


def _by(method: Any) -> Speculation:
    return Speculation(method=method, tokens=3, adaptive=False)


@pytest.fixture(scope="module")
def proposing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Proposing:
    """The other model has fewer layers, and other heads than the model."""
    folder = tmp_path_factory.mktemp("tiny")
    if request.param == "a head":
        model, head = make_tiny_pair(folder, seed=1, hidden_share=0.1)
        return Proposing(model, _by("eagle"), head, accepted=0.3)
    if request.param == "layers of the model":
        return Proposing(make_tiny_mimo(folder / "model", seed=1, hidden_share=0.1), _by("mtp"), accepted=0.3)
    model = make_tiny_llama(folder / "model", seed=1)
    if request.param == "ngram":
        lookup = _by("ngram").model_copy(update={"lookup_min": 1})
        return Proposing(model, lookup, accepted=0.1)
    if request.param == "the model itself":
        return Proposing(model, _by("draft"), model, accepted=0.95)
    return Proposing(model, _by("draft"), make_tiny_llama(folder / "other", seed=2, layers=1, kv_heads=1))


_MODELS = ("ngram", "the model itself", "another model")
_HEADS = ("a head", "layers of the model")
# Heads differ in what they read and in the KV that they leave. What becomes of proposals is the same for all.
by_models = pytest.mark.parametrize("proposing", _MODELS, indirect=True, scope="module")
by_all = pytest.mark.parametrize("proposing", [*_MODELS, *_HEADS], indirect=True, scope="module")


@pytest.fixture(scope="module")
def model(proposing: Proposing) -> Path:
    return proposing.model


@pytest.fixture(scope="module")
def alone(model: Path) -> Answers:
    answers = greedy_answers(model, list(PROMPTS.values()), ANSWER)
    return dict(zip(LENGTHS, answers, strict=True))


def _engine(role: WorkerRole, proposing: Proposing) -> Engine:
    from llmserve.engines.vllm.engine import VllmEngine

    return VllmEngine(
        EngineSpec(
            worker_id=WorkerId(role),
            epoch=next(numbers),
            role=role,
            model_dir=proposing.model,
            model_name="tiny",
            model_identity="rev",
            engine=EngineConfig(
                max_model_len=MAX_MODEL_LEN,
                dtype="float32",
                max_decode_concurrency=64,
                prefill_long_prompt_tokens=128,
            ),
            kv_cache=KvCacheConfig(memory_gb=0.06, block_size_tokens=BLOCK),
            transfer=TransferConfig(engine_order=("nixl",), verify="always"),
            speculation=proposing.speculation,
            draft_dir=proposing.draft,
            draft_identity="draft" if proposing.draft else "",
        )
    )


@asynccontextmanager
async def _started(proposing: Proposing) -> AsyncIterator[Pair]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
        made = [_engine(role, proposing) for role in (WorkerRole.PREFILL, WorkerRole.DECODE)]
        try:
            prefill, decode = await asyncio.gather(*(Harness.open(one, SETTLE_SECONDS) for one in made))
            yield Pair(prefill, decode)
            await asyncio.gather(prefill.close(), decode.close())
        finally:
            await asyncio.gather(*(engine.aclose() for engine in made))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(proposing: Proposing, alone: Answers) -> AsyncIterator[Pair]:
    async with _started(proposing) as pair:
        yield pair


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def empty(pair: Pair) -> AsyncIterator[None]:
    """Each test leaves the engines empty."""
    yield
    await pair.prefill.empty()
    await pair.decode.empty()


def _salt() -> str:
    """No KV in common with what was asked before."""
    return f"{next(numbers):032x}"


def _accepted(outputs: Sequence[EngineOutput]) -> tuple[int, int]:
    """Tokens that were accepted, of so many that were proposed."""
    report = outputs[-1].acceptance
    return (report.accepted_tokens, report.proposed_tokens) if report else (0, 0)


async def _whole(harness: Harness, length: int) -> list[EngineOutput]:
    return await harness.run(PROMPTS[length], ANSWER, salt=_salt())


@by_all
async def test_computed_where_it_is_answered(pair: Pair, alone: Answers, proposing: Proposing) -> None:
    answers = await asyncio.gather(*(_whole(pair.decode, length) for length in LENGTHS))
    assert {n: tokens(one) for n, one in zip(LENGTHS, answers, strict=True)} == alone
    _check_acceptance(answers, proposing)


@by_all
@pytest.mark.parametrize("way", ["pulled", "pushed"])
async def test_handed_over(pair: Pair, alone: Answers, proposing: Proposing, way: str) -> None:
    """One after the other, so that each meets the first step after a hand-over: what was proposed there must
    be no less right than without one, which the KV of the draft at decode shows."""
    local, handed = [], []
    for length in LENGTHS:
        local.append(await pair.decode.run([*PROMPTS[length], alone[length][0]], ANSWER - 1, salt=_salt()))
        if way == "pulled":
            first, rest = await pair.continued(PROMPTS[length], ANSWER, salt=_salt())
        else:
            first, rest = await (await Push.start(pair, PROMPTS[length], ANSWER - 1, salt=_salt())).finish()
        assert [*first, *tokens(rest)] == alone[length], length
        assert rest[0].handover is not None
        assert rest[0].handover.pushed is (way == "pushed")
        assert rest[0].prefill_stats is not None
        assert rest[0].prefill_stats.external_cached_tokens >= length
        handed.append(rest)
    assert list(map(_accepted, handed)) == list(map(_accepted, local))
    _check_acceptance(handed, proposing)


def _check_acceptance(answers: Sequence[Sequence[EngineOutput]], proposing: Proposing) -> None:
    accepted, proposed = map(sum, zip(*map(_accepted, answers), strict=True))
    assert proposed > len(LENGTHS)
    assert accepted / proposed >= proposing.accepted
    steps = sum(len(answer) for answer in answers)
    generated = sum(len(tokens(answer)) for answer in answers)
    assert generated >= steps + accepted - 3 * len(answers), "the last step may draw more than was asked for"


@by_all
async def test_prefill_proposes_nothing(pair: Pair, alone: Answers) -> None:
    answer = await _whole(pair.prefill, 33)
    assert tokens(answer) == alone[33]
    assert _accepted(answer) == (0, 0)
    assert len(answer) == ANSWER


@by_models
async def test_an_answer_ends_within_what_was_proposed(pair: Pair, alone: Answers) -> None:
    for stop in range(1, 9):
        expected = alone[100][: alone[100].index(alone[100][stop]) + 1]
        outputs = await pair.decode.run(
            PROMPTS[100], ANSWER, stop_token_ids=frozenset({expected[-1]}), salt=_salt()
        )
        assert tokens(outputs) == expected
        assert tokens(await pair.decode.run(PROMPTS[100], stop, salt=_salt())) == alone[100][:stop]


# -- sampling


async def _sampled(
    harness: Harness, prompt: Sequence[int], count: int, max_tokens: int, **params: Any
) -> list[list[EngineOutput]]:
    """Returns the outputs of so many requests alike. params: of vLLM's SamplingParams."""
    from vllm.sampling_params import SamplingParams

    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, detokenize=False, **params)
    names = [RequestId(f"r{next(numbers)}") for _ in range(count)]
    for name in names:
        await harness.engine.add(
            EngineRequest(
                name, prompt, SamplingLimits(max_tokens), msgspec.msgpack.encode(sampling), cache_salt=_salt()
            )
        )
    return [await harness.result(name) for name in names]


REQUESTS, DRAWN = 800, 3
TEMPERATURE, TOP_K = 0.8, 24
# Whatever token is drawn, it stands in here after the last one: without a draft, it can be looked up.
EVERY_PAIR = [token for other in range(3, VOCAB) for token in (3, other)] + [3]


@by_models
async def test_sampled_tokens_are_distributed_as_those_of_the_model(
    pair: Pair, model: Path, proposing: Proposing
) -> None:
    """The first token is drawn before anything is proposed; the others are what became of proposals."""
    prompt = PROMPTS[5] if proposing.draft else EVERY_PAIR
    expected = token_chances(model, prompt, DRAWN, temperature=TEMPERATURE, top_k=TOP_K)
    answers = await _sampled(pair.decode, prompt, REQUESTS, DRAWN, temperature=TEMPERATURE, top_k=TOP_K)
    ends = [answer[-1].acceptance for answer in answers]
    assert sum(end is not None and end.proposed_tokens > 0 for end in ends) > REQUESTS // 2
    for position, chances in enumerate(expected):
        drawn = [tokens(answer)[position] for answer in answers]
        assert is_plausible(drawn, chances), f"token {position}"
    colder = token_chances(model, prompt, 2, temperature=0.3, top_k=TOP_K)
    assert not is_plausible([tokens(answer)[1] for answer in answers], colder[1]), "the test sees nothing"


@by_models
@pytest.mark.parametrize(
    "params",
    [
        pytest.param({"repetition_penalty": 1.3, "presence_penalty": 0.4}, id="penalties"),
        pytest.param({"allowed_token_ids": list(range(3, 40))}, id="allowed"),
    ],
)
async def test_what_changes_the_choice_of_tokens(pair: Pair, params: dict[str, Any]) -> None:
    """As prefill's engine says it, which proposes nothing."""
    (plain,) = await _sampled(pair.prefill, PROMPTS[64], 1, ANSWER, temperature=0.0, **params)
    (answer,) = await _sampled(pair.decode, PROMPTS[64], 1, ANSWER, temperature=0.0, **params)
    assert tokens(answer) == tokens(plain)


@by_models
async def test_logprobs_are_those_of_the_tokens(pair: Pair, alone: Answers) -> None:
    import numpy as np

    (answer,) = await _sampled(pair.decode, PROMPTS[64], 1, ANSWER, temperature=0.0, logprobs=2)
    assert tokens(answer) == alone[64]
    for output in answer:
        assert output.logprobs is not None
        rows = np.frombuffer(output.logprobs.token_ids, "<i4").reshape(-1, output.logprobs.width)
        assert rows[:, 0].tolist() == list(output.token_ids)
        assert np.frombuffer(output.logprobs.ranks, "<i4").tolist() == [1] * len(output.token_ids)


@by_models
async def test_an_answer_that_follows_a_grammar(pair: Pair) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    grammar = StructuredOutputsParams(regex="(AB|CDE){4}")
    grammar._backend = "xgrammar"
    (answer,) = await _sampled(pair.decode, PROMPTS[64], 1, 12, temperature=0.0, structured_outputs=grammar)
    text = "".join(chr(ord("!") + token) for token in tokens(answer))
    assert re.fullmatch("(AB|CDE){4}!?", text), "the last token, 0, ends an answer that is complete"
