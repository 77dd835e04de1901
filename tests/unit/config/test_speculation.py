"""How a manifest asks for speculative decoding, and what it is refused for."""

from collections.abc import Mapping
from typing import Any

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.schema import EngineConfig, ModelSpec, Speculation
from llmserve.config.schema.section import path_text
from llmserve.config.speculation import (
    ModelFiles,
    draft_of,
    draft_source,
    loaded_draft,
    speculation_of,
    speculation_refusals,
)
from llmserve.core.errors import ManifestError

MODEL = "kind: LLMServe\nmodels:\n  primary: {source: hub:org/name}\n"
DRAFT = ModelSpec(source="hub:org/small")
SHORT = "  draft: {source: hub:org/small}\n"


def of(text: str) -> Speculation | None:
    return speculation_of(parse_manifest(MODEL + text, "m.yaml"))


def refused(text: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(MODEL + text, "m.yaml")
    return [line.removeprefix("m.yaml:") for line in caught.value.message.splitlines()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", None, id="none"),
        pytest.param("engine: {speculation: {method: none, tokens: 2}}", None, id="off"),
        pytest.param(
            "engine: {speculation: {method: ngram}}",
            Speculation(method="ngram", tokens=3, lookup_min=2, lookup_max=4),
            id="defaults",
        ),
        pytest.param(
            "engine: {speculation: {method: ngram}, speculative_tokens: 5}",
            Speculation(method="ngram", tokens=5),
            id="ngram-with-the-short-number",
        ),
        pytest.param(
            f"{SHORT}engine: {{speculative_tokens: 4}}",
            Speculation(method="draft", tokens=4, draft=DRAFT),
            id="short-form",
        ),
        pytest.param(
            "engine: {speculation: {method: draft, tokens: 1, draft: {source: hub:org/small}}}",
            Speculation(method="draft", tokens=1, draft=DRAFT),
            id="long-form",
        ),
        pytest.param(
            "engine: {speculation: {draft: {source: hub:org/small}}}",
            Speculation(method="draft", draft=DRAFT),
            id="a-draft-is-a-method",
        ),
        pytest.param(
            f"{SHORT}engine: {{speculation: {{method: none}}}}", None, id="a-draft-that-is-turned-off"
        ),
        pytest.param(
            "engine: {speculation: {method: mtp, tokens: 1}}",
            Speculation(method="mtp", tokens=1),
            id="layers-of-the-model",
        ),
        pytest.param(
            "engine: {speculation: {method: eagle, draft: {source: hub:org/small}}}",
            Speculation(method="eagle", draft=DRAFT),
            id="a-head",
        ),
    ],
)
def test_the_manifest_says_how_engines_speculate(text: str, expected: Speculation | None) -> None:
    assert of(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            f"{SHORT}engine: {{speculation: {{draft: {{source: hub:org/other}}}}}}",
            "4: models.draft: engine.speculation.draft names a draft, too; keep one",
            id="two-drafts",
        ),
        pytest.param(
            f"{SHORT}engine: {{speculative_tokens: 3, speculation: {{tokens: 3}}}}",
            "5: engine.speculative_tokens: engine.speculation.tokens says it, too; keep one",
            id="two-numbers",
        ),
        pytest.param(
            "engine: {speculative_tokens: 3}",
            "4: engine.speculative_tokens: has no effect without models.draft or engine.speculation.method",
            id="a-number-without-a-draft",
        ),
        pytest.param(
            SHORT,
            "4: models.draft: would propose no token; set engine.speculative_tokens, such as 3",
            id="a-draft-without-a-number",
        ),
        pytest.param(
            "engine: {speculation: {method: eagle}}\ndeployment: {disaggregated: false}",
            "4: engine.speculation.method: eagle needs engine.speculation.draft or models.draft",
            id="no-draft",
        ),
        pytest.param(
            f"{SHORT}engine: {{speculation: {{method: ngram}}}}",
            "4: models.draft: has no effect with engine.speculation.method: ngram",
            id="a-draft-for-nothing",
        ),
        pytest.param(
            "engine: {speculation: {draft: {source: hub:org/small, name: mine}}}",
            "4: engine.speculation.draft.name: clients cannot ask a draft, so it has no name",
            id="a-name",
        ),
        pytest.param(
            "engine: {speculation: {method: ngram, lookup_min: 5}}",
            "4: engine.speculation.lookup_min: lookup_min (5) must be at most lookup_max (4)",
            id="bounds-the-wrong-way-round",
        ),
        pytest.param(
            f"{SHORT}engine: {{speculation: {{lookup_max: 3}}}}",
            "5: engine.speculation.lookup_max: has no effect without engine.speculation.method: ngram",
            id="bounds-for-nothing",
        ),
        pytest.param(
            "engine: {speculation: {method: ngram}, max_batched_tokens: 255, max_decode_concurrency: 64}",
            "4: engine.max_batched_tokens: must be at least 256, for 64 requests with 3 proposed tokens "
            "each, got 255",
            id="a-step-is-too-small",
        ),
        pytest.param(
            "engine: {speculation: {method: ngram}, task: embed}\ndeployment: {disaggregated: false}",
            "4: engine.speculation.method: has no effect: a model with engine.task embed generates no tokens",
            id="a-model-that-generates-nothing",
        ),
        pytest.param(
            "engine: {speculation: {method: ngram, tokens: 0}}",
            "4: engine.speculation.tokens: must be at least 1, got 0",
            id="no-token",
        ),
        pytest.param(
            "engine: {sim: {acceptance: 1.5}}",
            "4: engine.sim.acceptance: must be at most 1, got 1.5",
            id="too-sure",
        ),
    ],
)
def test_what_does_not_fit_is_refused(text: str, expected: str) -> None:
    assert refused(text) == [expected]


def test_a_wrong_model_hides_what_follows_from_it() -> None:
    text = "  draft: {source: 5}\nengine: {speculative_tokens: 3}"
    assert refused(text) == ["4: models.draft.source: expected text, got 5"]


def test_enough_room_in_a_step_is_accepted() -> None:
    text = "engine: {speculation: {method: ngram}, max_batched_tokens: 256, max_decode_concurrency: 64}"
    assert of(text) is not None


def test_the_draft_is_named_where_it_stands() -> None:
    long = "engine: {speculation: {draft: {source: hub:org/small}}}"
    short = parse_manifest(f"{MODEL}{SHORT}engine: {{speculative_tokens: 3}}", "m.yaml")
    assert (draft_source(short.engine), draft_of(short)) == (("models", "draft", "source"), DRAFT)
    given = parse_manifest(MODEL + long, "m.yaml")
    assert draft_of(given) == DRAFT
    assert draft_source(given.engine) == ("engine", "speculation", "draft", "source")


def test_simulated_engines_load_no_draft() -> None:
    manifest = parse_manifest(f"{MODEL}{SHORT}engine: {{speculative_tokens: 3, kind: sim}}", "m.yaml")
    assert (draft_of(manifest), loaded_draft(manifest)) == (DRAFT, None)


def test_without_a_draft_nothing_is_fetched() -> None:
    assert draft_of(parse_manifest(MODEL, "m.yaml")) is None
    assert draft_of(parse_manifest(f"{MODEL}engine: {{speculation: {{method: ngram}}}}", "m.yaml")) is None


# -- what the models do not allow

SMOLLM2 = {"num_attention_heads": 9, "vocab_size": 4, "max_position_embeddings": 2048}
TOKENS = {"a": 0, "b": 1, "c": 2, "d": 3}


def files(
    config: Mapping[str, Any] | None = None,
    tokens: Mapping[str, int] = TOKENS,
    folder: str = "/models/small",
    **sampling: Any,
) -> ModelFiles:
    return ModelFiles(SMOLLM2 | dict(config or {}), sampling, tokens, folder)


def unfit(
    model: ModelFiles,
    draft: ModelFiles | None,
    method: Any = "draft",
    *,
    tokens: int = 3,
    hands_over: bool = True,
    **engine: Any,
) -> list[tuple[str, str]]:
    asked = Speculation(method=method, tokens=tokens)
    found = speculation_refusals(EngineConfig(**engine), asked, model, draft, hands_over=hands_over)
    return [(path_text(one.paths[0]), one.message) for one in found]


@pytest.mark.parametrize(
    "draft",
    [
        pytest.param(files(), id="alike"),
        pytest.param(files(tokens={}), id="tokens-that-are-not-known"),
        pytest.param(files(tokens={"a": 0, "b": 1}), id="tokens-that-are-left-out"),
        pytest.param(files({"max_position_embeddings": 8192}), id="longer"),
        pytest.param(files({"sliding_window": 64, "use_sliding_window": False}), id="a-window-not-used"),
        pytest.param(files({"vocab_size": None}), id="a-size-that-is-not-known"),
    ],
)
def test_a_draft_that_fits(draft: ModelFiles) -> None:
    assert unfit(files(), draft) == []


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        pytest.param(
            files({"vocab_size": 5}),
            "has another vocabulary than the model: 5 tokens instead of 4",
            id="size",
        ),
        pytest.param(
            files(tokens={"a": 0, "b": 2, "e": 3}),
            "has another vocabulary than the model: 2 of its tokens are others there",
            id="tokens",
        ),
        pytest.param(
            files({"max_position_embeddings": 1024}),
            "was made for at most 1024 tokens; set engine.max_model_len to that or less",
            id="shorter",
        ),
        pytest.param(
            files({"sliding_window": 64}),
            "is available only where all layers of the model and of the draft see the whole prompt",
            id="a-window",
        ),
        pytest.param(
            files({"num_attention_heads": 4}),
            "has 4 attention heads, which 3 ranks cannot share",
            id="heads",
        ),
        pytest.param(
            files(folder="/models/Beagle-1B"),
            "vLLM would take /models/Beagle-1B for the head of a model, by its name; rename it",
            id="a-path-that-misleads-vllm",
        ),
    ],
)
def test_a_draft_that_does_not_fit(draft: ModelFiles, message: str) -> None:
    assert unfit(files(), draft, tensor_parallel=3) == [("models.draft.source", message)]


def test_a_draft_may_be_shorter_than_the_model_but_not_than_the_requests() -> None:
    short = files({"max_position_embeddings": 1024})
    assert unfit(files(), short, max_model_len=1024) == []
    assert len(unfit(files(), short, max_model_len=1025)) == 1


def test_a_model_with_windows_has_no_draft() -> None:
    assert len(unfit(files({"layer_types": ["full_attention", "sliding_attention"]}), files())) == 1


def test_a_head_is_no_draft_with_a_vocabulary_of_its_own() -> None:
    head = files({"vocab_size": 2, "max_position_embeddings": 16}, {"z": 0}, "/models/eagle3-head")
    assert unfit(files(), head, "eagle") == []


def test_a_finding_is_reported_where_the_draft_stands() -> None:
    found = unfit(files(), files({"vocab_size": 5}), speculation=Speculation(draft=DRAFT))
    assert [path for path, _ in found] == ["engine.speculation.draft.source"]


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        ({}, False),
        ({"num_nextn_predict_layers": 0}, False),
        ({"num_nextn_predict_layers": 1}, True),
        ({"text_config": {"mtp_num_hidden_layers": 1}}, True),
        ({"model_type": "mimo"}, True),
        ({"model_type": "llama"}, False),
    ],
)
def test_only_some_models_have_mtp_layers(config: dict[str, Any], fits: bool) -> None:
    refusal = (
        "engine.speculation.method",
        "the model has no MTP layers (layers that predict further tokens)",
    )
    assert unfit(files(config), None, "mtp") == ([] if fits else [refusal])


@pytest.mark.parametrize(
    ("layers", "tokens", "hands_over", "fits"),
    [(1, 3, True, True), (2, 1, True, True), (2, 4, False, True), (2, 3, True, False)],
)
def test_several_mtp_layers_need_what_is_not_handed_over(
    layers: int, tokens: int, hands_over: bool, fits: bool
) -> None:
    model = files({"num_nextn_predict_layers": layers})
    message = (
        "is not available yet with deployment.disaggregated for a model that has 2 MTP layers; set "
        "engine.speculation.tokens to 1"
    )
    expected = [] if fits else [("engine.speculation.method", message)]
    assert unfit(model, None, "mtp", tokens=tokens, hands_over=hands_over) == expected


@pytest.mark.parametrize(
    ("layers", "tokens", "fits"),
    [(1, 3, True), (2, 1, True), (3, 2, True), (3, 3, True), (3, 6, True), (2, 3, False), (3, 4, False)],
)
def test_several_mtp_layers_propose_each_as_often_as_the_others(layers: int, tokens: int, fits: bool) -> None:
    """As vLLM wants it (SpeculativeConfig.__post_init__). Of more layers than tokens some do nothing."""
    model = files({"num_nextn_predict_layers": layers})
    message = (
        f"the model's {layers} MTP layers cannot propose {tokens} tokens; set engine.speculation.tokens to "
        f"{layers} or less, or to a multiple of it"
    )
    expected = [] if fits else [("engine.speculation.method", message)]
    assert unfit(model, None, "mtp", tokens=tokens, hands_over=False) == expected


@pytest.mark.parametrize("hands_over", [True, False])
def test_the_key_that_the_manifest_has_is_the_one_that_is_to_be_changed(hands_over: bool) -> None:
    """With the other one the manifest would be refused, since it would say it twice."""
    given = parse_manifest(MODEL + "engine: {speculation: {method: mtp}, speculative_tokens: 3}", "m.yaml")
    speculation, model = speculation_of(given), files({"num_nextn_predict_layers": 2})
    assert speculation is not None
    (found,) = speculation_refusals(given.engine, speculation, model, None, hands_over=hands_over)
    assert "; set engine.speculative_tokens to " in found.message
    assert ("engine", "speculative_tokens") in found.paths


def test_sampling_that_engines_would_ignore() -> None:
    message = "the model's generation_config.json sets min_p, which engines that speculate do not obey"
    assert unfit(files(min_p=0.1), None, "ngram") == [("engine.speculation.method", message)]
    assert unfit(files(min_p=0.0, top_p=0.9), None, "ngram") == []
