"""Which prompts an endpoint takes and how it counts them: asked with small requests before the load."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmserve.core.errors import LLMServeError, NotAuthenticated, Unavailable
from llmserve.loadgen.answer import Answer, Failure, FailureKind
from llmserve.loadgen.endpoint import Endpoint
from llmserve.loadgen.prompts import WORDS, PromptForm, Scale

_IDS = tuple(range(1000, 1008))
_TRIED = (PromptForm.TOKENS, PromptForm.TEXT, PromptForm.CHAT)


@dataclass(frozen=True, slots=True)
class Probed:
    """notes: what is only approximately so, in sentences."""

    form: PromptForm
    scale: Scale
    notes: tuple[str, ...] = ()


async def probe(endpoint: Endpoint, tenant: str, wanted: PromptForm | None, *, keeps_talking: bool) -> Probed:
    """Adapts the endpoint to the first form that works, or to the wanted one. keeps_talking: answers become
    part of later prompts. Errors: LLMServeError with the endpoint's words."""
    failure = Failure(FailureKind.NO_TOKENS, "nothing was tried")
    for form in (wanted,) if wanted else _TRIED:
        endpoint.adapted(form, {})
        answer = await _ask(endpoint, tenant, _prompt(form, 1))
        if answer.failure is None and not (form is PromptForm.TOKENS and _counts_otherwise(answer)):
            return await _scaled(endpoint, tenant, form, answer, keeps_talking)
        failure = answer.failure or Failure(FailureKind.HTTP, "it does not take token ids", 200)
        _give_up_early(failure)
    raise LLMServeError(f"the endpoint does not answer a small request: {failure.label}: {failure.message}")


def _give_up_early(failure: Failure) -> None:
    """Another form of prompt does not help here. Errors: NotAuthenticated, Unavailable."""
    if failure.status in (401, 403):
        raise NotAuthenticated(f"the endpoint refuses the key: {failure.label}: {failure.message}")
    if failure.kind in (FailureKind.CONNECT, FailureKind.TIMEOUT):
        raise Unavailable(f"the endpoint does not answer: {failure.label}: {failure.message}")


def _counts_otherwise(answer: Answer) -> bool:
    return answer.prompt_tokens not in (None, len(_IDS))


def _prompt(form: PromptForm, times: int) -> dict[str, Any]:
    words = "".join(f" {word}" for word in WORDS) * times
    if form is PromptForm.TOKENS:
        return {"prompt": list(_IDS)}
    if form is PromptForm.TEXT:
        return {"prompt": words}
    return {"messages": [{"role": "user", "content": words}]}


async def _ask(endpoint: Endpoint, tenant: str, prompt: dict[str, Any]) -> Answer:
    return await endpoint.send(endpoint.body(prompt, 2), tenant, time.perf_counter)


async def _scaled(
    endpoint: Endpoint, tenant: str, form: PromptForm, first: Answer, keeps_talking: bool
) -> Probed:
    notes = [] if first.usage_tokens is not None else [_UNCOUNTED]
    if form is PromptForm.TOKENS:
        if keeps_talking and not await _gives_ids(endpoint, tenant):
            notes.append("later turns repeat answers of the right length but other tokens: none were given")
        return Probed(form, Scale(), tuple(notes))
    second = await _ask(endpoint, tenant, _prompt(form, 2))
    scale = scale_of([(len(WORDS), first.prompt_tokens), (2 * len(WORDS), second.prompt_tokens)])
    notes.append(
        f"prompts are {form}: their lengths are approximate, {scale.per_word:.2f} tokens a word"
        if scale
        else f"prompts are {form}, taken as one token a word: the endpoint does not count them"
    )
    return Probed(form, scale or Scale(), tuple(notes))


async def _gives_ids(endpoint: Endpoint, tenant: str) -> bool:
    endpoint.adapted(PromptForm.TOKENS, {"return_token_ids": True})
    answer = await _ask(endpoint, tenant, _prompt(PromptForm.TOKENS, 1))
    if answer.failure is None and answer.token_ids:
        return True
    endpoint.adapted(PromptForm.TOKENS, {"return_token_ids": None})
    return False


def scale_of(points: Sequence[tuple[int, int | None]]) -> Scale | None:
    """From two prompts: words, and tokens as counted. None when they were not, or make no sense."""
    (few, few_tokens), (many, many_tokens) = points
    if few_tokens is None or many_tokens is None or many_tokens <= few_tokens:
        return None
    per_word = (many_tokens - few_tokens) / (many - few)
    return Scale(per_word, max(0.0, few_tokens - per_word * few))


_UNCOUNTED = "the endpoint sends no usage: tokens are counted by ids, or one for each piece of the stream"
