"""Decides how the engines of a manifest speculate, once for all that need to know, and checks what a manifest
says about it. Pure."""

from collections.abc import Iterator

from llmserve.config.conflict import Conflict
from llmserve.config.schema import Manifest, ModelSpec, Speculation

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
    """Returns the model that proposes tokens, which is fetched and loaded like the primary one; None: none
    does."""
    speculation = speculation_of(manifest)
    return speculation.draft if speculation else None


def draft_key(manifest: Manifest) -> tuple[str, ...]:
    """Returns where the manifest names the model that proposes."""
    return ("engine", "speculation", "draft") if manifest.engine.speculation.draft else ("models", "draft")


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
        yield from _handover(manifest, speculation)
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
    given, key = manifest.engine.speculation, ".".join(draft_key(manifest))
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


def _handover(manifest: Manifest, speculation: Speculation) -> Iterator[Conflict]:
    """What a head knows of a prompt are hidden states of the model, and those are not handed over."""
    if manifest.deployment.disaggregated and speculation.method in ("eagle", "mtp"):
        message = f"{speculation.method} is not available yet with deployment.disaggregated"
        yield Conflict.at(message, _METHOD, "deployment.disaggregated")


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
