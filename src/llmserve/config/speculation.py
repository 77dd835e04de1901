"""Decides how the engines of a manifest speculate, once for all that need to know, and checks what a manifest
says about it. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmserve.config.conflict import Conflict
from llmserve.config.refusals import has_windows, language_part, longest_tokens
from llmserve.config.schema import EngineConfig, Manifest, ModelSpec, Speculation

_SECTION = "engine.speculation"
_METHOD = f"{_SECTION}.method"
_TOKENS = f"{_SECTION}.tokens"
_SHORT_TOKENS = "engine.speculative_tokens"
_LOOKUP = ("lookup_min", "lookup_max")


def speculation_of(manifest: Manifest) -> Speculation | None:
    """Returns how engines speculate, with the short form taken in: `method` is set, and `draft` is the model
    that proposes, if one does. None: they do not."""
    given, short = manifest.engine.speculation, manifest.engine.speculative_tokens
    draft = given.draft or manifest.model.draft
    method = given.method or ("draft" if draft else "none")
    if method == "none":
        return None
    return given.model_copy(
        update={"method": method, "tokens": short or given.tokens, "draft": draft if _has(method) else None}
    )


def draft_of(manifest: Manifest) -> ModelSpec | None:
    """Returns the model that proposes tokens; None: none does."""
    speculation = speculation_of(manifest)
    return speculation.draft if speculation else None


def loaded_draft(manifest: Manifest) -> ModelSpec | None:
    """Returns the draft that engines load. Simulated ones load none."""
    return draft_of(manifest) if manifest.engine.kind == "vllm" else None


def draft_source(engine: EngineConfig) -> tuple[str, ...]:
    """Returns where the manifest names the source of the model that proposes."""
    return (*_draft_key(engine), "source")


def _draft_key(engine: EngineConfig) -> tuple[str, ...]:
    return ("engine", "speculation", "draft") if engine.speculation.draft else ("models", "draft")


def _has(method: str) -> bool:
    """Whether a method has a model of its own that proposes."""
    return method in ("draft", "eagle")


def speculation_rules(manifest: Manifest) -> Iterator[Conflict]:
    """Yields what does not fit together. It is a part of `rules`."""
    yield from _short_form(manifest)
    yield from _draft(manifest)
    yield from _lookup(manifest.engine.speculation)
    speculation = speculation_of(manifest)
    if speculation is not None:
        if manifest.engine.task != "generate":
            message = f"has no effect: a model with engine.task {manifest.engine.task} generates no tokens"
            yield Conflict.at(message, _METHOD, "engine.task", "models")
        yield from _batch(manifest, speculation)


def _short_form(manifest: Manifest) -> Iterator[Conflict]:
    given, short = manifest.engine.speculation, manifest.engine.speculative_tokens
    if given.draft is not None and manifest.model.draft is not None:
        yield Conflict.at(f"{_SECTION}.draft names a draft, too; keep one", "models.draft", _SECTION)
    if short and "tokens" in given.model_fields_set:
        yield Conflict.at(f"{_TOKENS} says it, too; keep one", _SHORT_TOKENS, _TOKENS)
    elif short and speculation_of(manifest) is None and given.method is None:
        message = f"has no effect without models.draft or {_METHOD}"
        yield Conflict.at(message, _SHORT_TOKENS, "models")
    if manifest.model.draft is not None and not short and not given.model_fields_set:
        message = f"would propose no token; set {_SHORT_TOKENS}, such as 3"
        yield Conflict.at(message, "models.draft", _SHORT_TOKENS)


def _draft(manifest: Manifest) -> Iterator[Conflict]:
    given, key = manifest.engine.speculation, ".".join(_draft_key(manifest.engine))
    draft = given.draft or manifest.model.draft
    if draft is None:
        if given.method is not None and _has(given.method):
            yield Conflict.at(f"{given.method} needs {_SECTION}.draft or models.draft", _METHOD, "models")
        return
    if given.method is not None and given.method != "none" and not _has(given.method):
        yield Conflict.at(f"has no effect with {_METHOD}: {given.method}", key, _METHOD)
    if draft.name is not None:
        yield Conflict.at("clients cannot ask a draft, so it has no name", f"{key}.name")


def _lookup(given: Speculation) -> Iterator[Conflict]:
    keys = [f"{_SECTION}.{name}" for name in _LOOKUP if name in given.model_fields_set]
    if given.method != "ngram":
        for key in keys:
            yield Conflict.at(f"has no effect without {_METHOD}: ngram", key, _METHOD)
    elif given.lookup_min > given.lookup_max:
        message = f"lookup_min ({given.lookup_min}) must be at most lookup_max ({given.lookup_max})"
        yield Conflict.at(message, *keys)


def _batch(manifest: Manifest, speculation: Speculation) -> Iterator[Conflict]:
    """Otherwise some requests would wait in each step for those that have proposals."""
    engine, key = manifest.engine, "engine.max_batched_tokens"
    needed = engine.max_decode_concurrency * (speculation.tokens + 1)
    if engine.max_batched_tokens is not None and engine.max_batched_tokens < needed:
        message = (
            f"must be at least {needed}, for {engine.max_decode_concurrency} requests with "
            f"{speculation.tokens} proposed tokens each, got {engine.max_batched_tokens}"
        )
        yield Conflict.at(message, key, "engine.max_decode_concurrency", _SECTION, _SHORT_TOKENS)


# -- what the models themselves do not allow


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What is read of a prepared model. config, sampling: its config.json and generation_config.json.
    vocabulary: the id of each token; empty: not known. folder: its directory."""

    config: Mapping[str, Any]
    sampling: Mapping[str, Any]
    vocabulary: Mapping[str, int]
    folder: str


# The number of a model's MTP layers, in config.json.
_MTP_LAYERS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
# vLLM knows without it how many layers these kinds have.
_MTP_WITHOUT_A_KEY = ("longcat", "mimo", "step3p")
# vLLM chooses its method by a part of the path, whatever it is told (SpeculativeConfig.__post_init__).
_TELLING_PATHS = ("eagle-", "eagle3", "dflash", "dspark")


def speculation_refusals(
    engine: EngineConfig,
    speculation: Speculation,
    model: ModelFiles,
    draft: ModelFiles | None,
    *,
    hands_over: bool,
) -> Iterator[Conflict]:
    """Yields why a model cannot speculate in this way. draft: the model that proposes, if one does.
    hands_over: whether KV of prompts goes from one engine to another."""
    if speculation.method == "mtp":
        tokens_key = _SHORT_TOKENS if engine.speculative_tokens else _TOKENS
        yield from _unfit_layers(speculation.tokens, tokens_key, model, hands_over)
    if model.sampling.get("min_p"):
        message = "the model's generation_config.json sets min_p, which engines that speculate do not obey"
        yield Conflict.at(message, _METHOD, "models.primary")
    if draft is not None:
        reasons = [*_unfit(engine, model, draft)]
        if speculation.method == "draft":
            reasons += [*_unfit_draft(engine, model, draft)]
        for reason in reasons:
            yield Conflict((draft_source(engine),), reason)


def _unfit_layers(tokens: int, tokens_key: str, model: ModelFiles, hands_over: bool) -> Iterator[Conflict]:
    """With several MTP layers, vLLM computes the KV of the last few tokens again in each step. For that it
    needs the model's hidden states of those tokens, which only the engine that computed them has. It lets
    each layer propose equally often when there are more tokens than layers. tokens_key: says the tokens."""
    layers = _mtp_layer_count(model.config)
    if layers == 0:
        message = "the model has no MTP layers (layers that predict further tokens)"
        yield Conflict.at(message, _METHOD, "models.primary")
    elif layers > 1 and tokens > 1 and hands_over:
        message = (
            f"is not available yet with deployment.disaggregated for a model that has {layers} MTP layers; "
            f"set {tokens_key} to 1"
        )
        yield Conflict.at(message, _METHOD, tokens_key, "deployment.disaggregated")
    elif tokens > layers and tokens % layers:
        message = (
            f"the model's {layers} MTP layers cannot propose {tokens} tokens; set {tokens_key} to {layers} "
            "or less, or to a multiple of it"
        )
        yield Conflict.at(message, _METHOD, tokens_key, "models.primary")


def mtp_layers(model: Mapping[str, Any], speculation: Speculation | None) -> Mapping[str, Any] | None:
    """Returns a config.json of the MTP layers of a model that propose, whose KV lies beside that of the other
    layers; None: none do."""
    if speculation is None or speculation.method != "mtp":
        return None
    return {**language_part(model), "num_hidden_layers": _mtp_layer_count(model)}


def has_mtp_layers(model: Mapping[str, Any]) -> bool:
    """model: its config.json."""
    return _mtp_layer_count(model) > 0


def _mtp_layer_count(model: Mapping[str, Any]) -> int:
    config = language_part(model)
    known = [int(config[name] or 0) for name in _MTP_LAYERS if name in config]
    return max(known) if known else int(str(config.get("model_type", "")).startswith(_MTP_WITHOUT_A_KEY))


def _unfit(engine: EngineConfig, model: ModelFiles, draft: ModelFiles) -> Iterator[str]:
    """What holds for draft models and for heads."""
    if any(has_windows(language_part(one.config)) for one in (model, draft)):
        yield "is available only where all layers of the model and of the draft see the whole prompt"
    heads = language_part(draft.config).get("num_attention_heads")
    if isinstance(heads, int) and heads % engine.tensor_parallel:
        yield f"has {heads} attention heads, which {engine.tensor_parallel} ranks cannot share"


def _unfit_draft(engine: EngineConfig, model: ModelFiles, draft: ModelFiles) -> Iterator[str]:
    longest = engine.max_model_len or longest_tokens(model.config)
    most = longest_tokens(draft.config)
    if most is not None and longest is not None and most < longest:
        yield f"was made for at most {most} tokens; set engine.max_model_len to that or less"
    sizes = [language_part(one.config).get("vocab_size") for one in (model, draft)]
    if None not in sizes and sizes[0] != sizes[1]:
        yield f"has another vocabulary than the model: {sizes[1]} tokens instead of {sizes[0]}"
    elif other := _other_tokens(model.vocabulary, draft.vocabulary):
        yield f"has another vocabulary than the model: {other} of its tokens are others there"
    if any(part in draft.folder.lower() for part in _TELLING_PATHS):
        yield f"vLLM would take {draft.folder} for the head of a model, by its name; rename it"


def _other_tokens(model: Mapping[str, int], draft: Mapping[str, int]) -> int:
    """Counts the tokens of the draft that the model has not, or elsewhere. 0 also when one is not known."""
    if not model or not draft:
        return 0
    return sum(model.get(token) != number for token, number in draft.items())
