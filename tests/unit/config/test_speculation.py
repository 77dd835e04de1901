"""How a manifest asks for speculative decoding, and what it is refused for."""

import pytest

from llmserve.config.load import parse_manifest
from llmserve.config.schema import ModelSpec, Speculation
from llmserve.config.speculation import draft_key, draft_of, speculation_of
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
            "deployment: {disaggregated: false}\nengine: {speculation: {method: mtp, tokens: 1}}",
            Speculation(method="mtp", tokens=1),
            id="layers-of-the-model",
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
            "engine: {speculation: {method: mtp}}",
            "4: engine.speculation.method: mtp is not available yet with deployment.disaggregated",
            id="hidden-states-are-not-handed-over",
        ),
        pytest.param(
            "engine: {speculation: {method: ngram}, max_batched_tokens: 255, max_decode_concurrency: 64}",
            "4: engine.max_batched_tokens: must be at least 256, for 64 requests with 3 proposed tokens "
            "each, got 255",
            id="a-step-is-too-small",
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
    assert (draft_key(short), draft_of(short)) == (("models", "draft"), DRAFT)
    given = parse_manifest(MODEL + long, "m.yaml")
    assert (draft_key(given), draft_of(given)) == (("engine", "speculation", "draft"), DRAFT)


def test_without_a_draft_nothing_is_fetched() -> None:
    assert draft_of(parse_manifest(MODEL, "m.yaml")) is None
    assert draft_of(parse_manifest(f"{MODEL}engine: {{speculation: {{method: ngram}}}}", "m.yaml")) is None
