"""The endpoint that is measured, over HTTP, and what a first request finds out about it."""

import json
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from llmserve.core.errors import InvalidRequest, LLMServeError, NotAuthenticated, Unavailable
from llmserve.loadgen.answer import Answer, AnswerFailure, Failure, error_text
from llmserve.loadgen.prompts import WORDS, PromptForm, Scale

# Servers close idle connections after 5 s (uvicorn) or more: one that is reused must not be closing.
_IDLE_SECONDS = 4.0
_ERROR_BYTES = 4096
_KEY_REFUSED = frozenset({401, 403})

Now = Callable[[], float]


@dataclass(frozen=True, slots=True)
class EndpointTarget:
    """url: the address without /v1. keys: API keys by tenant; default_key: the key of all others; None sends
    none. extra: further fields of each request; those that are None are left out. tls: which servers are
    believed; True: those with a certificate of the system's authorities."""

    url: str
    model: str
    keys: Mapping[str, str | None]
    form: PromptForm = PromptForm.TOKENS
    timeout_seconds: float = 600.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    default_key: str | None = None
    tls: ssl.SSLContext | bool = True


class Endpoint:
    """An async context; `send` may be called in it as often and as concurrently as wanted."""

    def __init__(self, target: EndpointTarget) -> None:
        self._target = target
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Endpoint":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS, ssl=self._target.tls),
            timeout=aiohttp.ClientTimeout(total=self._target.timeout_seconds),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def adapted(self, form: PromptForm, extra: Mapping[str, Any]) -> None:
        """Sends prompts in this form from now on, with these fields besides."""
        self._target = replace(self._target, form=form, extra={**self._target.extra, **extra})

    def body(self, prompt: Mapping[str, Any], output_tokens: int, adapter: str = "") -> bytes:
        fields = {
            "model": adapter or self._target.model,
            **prompt,
            "max_tokens": output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._target.extra,
        }
        sent = {name: value for name, value in fields.items() if value is not None}
        return json.dumps(sent, separators=(",", ":")).encode()

    async def send(self, body: bytes, tenant: str, now: Now) -> Answer:
        """Sends one request and reads its answer to the end, with times of `now`. The answer's `failure` says
        what went wrong."""
        answer = Answer()
        is_connected = False
        try:
            async with self._open().post(self._path(), data=body, headers=self._headers(tenant)) as response:
                is_connected = True
                if response.status != 200:
                    answer.failure = await _refusal(response)
                    return answer
                async for data in response.content.iter_any():
                    answer.feed(data, now())
            answer.ended()
        except TimeoutError:
            answer.failure = Failure(AnswerFailure.TIMEOUT, f"no end in {self._target.timeout_seconds:g} s")
        except (aiohttp.ClientError, OSError) as error:
            kind = AnswerFailure.BROKEN if is_connected else AnswerFailure.CONNECT
            answer.failure = Failure(kind, str(error) or type(error).__name__)
        return answer

    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None, "used outside of its context"
        return self._session

    def _path(self) -> str:
        kind = "chat/completions" if self._target.form is PromptForm.CHAT else "completions"
        return f"{self._target.url}/v1/{kind}"

    def _headers(self, tenant: str) -> dict[str, str]:
        key = self._target.keys.get(tenant, self._target.default_key)
        return {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}


def trusting(certificate: Path) -> ssl.SSLContext:
    """Believes the server with this very certificate, the first of a PEM file, by whatever name it is asked,
    and no other. Errors: OSError, ssl.SSLError, IndexError for a file without one."""
    text = certificate.read_text()
    own = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)[0]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=own)
    return context


def base_url(text: str) -> str:
    """The URL without a `/v1` or `/` at its end. Errors: InvalidRequest for what is no URL of HTTP."""
    if not text.startswith(("http://", "https://")):
        raise InvalidRequest(f"--url {text!r}: write http://HOST:PORT")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


async def only_model(url: str, key: str | None, tls: ssl.SSLContext | bool = True) -> str:
    """The first model that the endpoint lists. Errors: Unavailable, LLMServeError."""
    try:
        return str((await _models(url, key, tls))[0]["id"])
    except (KeyError, IndexError, TypeError):
        raise LLMServeError(f"{url}/v1/models: lists no model; name one with --model") from None


async def listed_adapters(url: str, key: str | None, tls: ssl.SSLContext | bool = True) -> list[str]:
    """The names of the adapters that the endpoint lists: models with a parent. Errors: Unavailable,
    LLMServeError."""
    return [str(model["id"]) for model in await _models(url, key, tls) if model.get("parent")]


async def _models(url: str, key: str | None, tls: ssl.SSLContext | bool) -> list[dict[str, Any]]:
    """Errors: Unavailable, LLMServeError."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    where = f"{url}/v1/models"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(where, headers=headers, ssl=tls) as response,
        ):
            if response.status != 200:
                failure = await _refusal(response)
                name_one = "" if response.status in _KEY_REFUSED else "; name one with --model"
                raise LLMServeError(f"{where}: {failure.label}: {failure.message}{name_one}")
            listed = await response.json(content_type=None)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unavailable(f"{where}: {error or type(error).__name__}") from error
    data = listed.get("data") if isinstance(listed, dict) else None
    return [model for model in data if isinstance(model, dict)] if isinstance(data, list) else []


async def _refusal(response: aiohttp.ClientResponse) -> Failure:
    text = (await response.content.read(_ERROR_BYTES)).decode(errors="replace")
    try:
        message = error_text(json.loads(text))
    except ValueError:
        message = error_text(text.strip() or response.reason)
    return Failure(AnswerFailure.HTTP, message, int(response.status))


_IDS = tuple(range(1000, 1008))
_TRIED = (PromptForm.TOKENS, PromptForm.TEXT, PromptForm.CHAT)


@dataclass(frozen=True, slots=True)
class Probed:
    """notes: sentences about what is only approximately right."""

    form: PromptForm
    scale: Scale
    notes: tuple[str, ...] = ()


async def probe(endpoint: Endpoint, tenant: str, wanted: PromptForm | None, *, keeps_talking: bool) -> Probed:
    """Sets the endpoint to the wanted form of prompts, or to the first one that works. keeps_talking: answers
    become part of later prompts. Errors: LLMServeError with the endpoint's words."""
    failure = Failure(AnswerFailure.NO_TOKENS, "nothing was tried")
    for form in (wanted,) if wanted else _TRIED:
        endpoint.adapted(form, {})
        answer = await _ask(endpoint, tenant, _prompt(form, 1))
        if answer.failure is None and not (form is PromptForm.TOKENS and _counts_otherwise(answer)):
            return await _scaled(endpoint, tenant, form, answer, keeps_talking)
        failure = answer.failure or Failure(AnswerFailure.HTTP, "it does not take token ids", 200)
        _give_up_early(failure)
    raise LLMServeError(f"the endpoint does not answer a small request: {failure.label}: {failure.message}")


def _give_up_early(failure: Failure) -> None:
    """Raises the errors that no other form of prompt avoids. Errors: NotAuthenticated, Unavailable."""
    if failure.status in (401, 403):
        raise NotAuthenticated(f"the endpoint refuses the key: {failure.label}: {failure.message}")
    if failure.kind in (AnswerFailure.CONNECT, AnswerFailure.TIMEOUT):
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
    """Derives the scale from two prompts, their words and their tokens as counted. None when the counts are
    missing or make no sense."""
    (few, few_tokens), (many, many_tokens) = points
    if few_tokens is None or many_tokens is None or many_tokens <= few_tokens:
        return None
    per_word = (many_tokens - few_tokens) / (many - few)
    return Scale(per_word, max(0.0, few_tokens - per_word * few))


_UNCOUNTED = "the endpoint sends no usage: tokens are counted by ids, or one for each piece of the stream"
