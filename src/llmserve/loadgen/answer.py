"""A streamed answer as its bytes come in, and the record of its request."""

import json
from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

_DATA = b"data:"
_DONE = b"[DONE]"


class AnswerFailure(StrEnum):
    HTTP = "HTTP"
    CONNECT = "no connection"
    TIMEOUT = "timeout"
    BROKEN = "stream broken"
    IN_STREAM = "error in the stream"
    NO_TOKENS = "no tokens"


@dataclass(frozen=True, slots=True)
class Failure:
    """status: the HTTP status; 0 when there was no answer."""

    kind: AnswerFailure
    message: str
    status: int = 0

    @property
    def label(self) -> str:
        return f"{self.kind} {self.status}" if self.kind is AnswerFailure.HTTP else str(self.kind)


@dataclass(slots=True, eq=False)
class Answer:
    """first_at, last_at: times of the first and last tokens on the caller's clock; None when none came. gaps:
    seconds between two arrivals of tokens (several tokens may come at once). usage_tokens, prompt_tokens,
    cached_tokens: the endpoint's own counts; None when it gives none."""

    first_at: float | None = None
    last_at: float | None = None
    gaps: "array[float]" = field(default_factory=lambda: array("d"))
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    usage_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    failure: Failure | None = None
    is_whole: bool = False
    _rest: bytes = b""

    @property
    def output_tokens(self) -> int:
        """The endpoint's count, else the number of token ids, else one for each arrival."""
        if self.usage_tokens is not None:
            return self.usage_tokens
        return len(self.token_ids) or (len(self.gaps) + 1 if self.first_at is not None else 0)

    def feed(self, data: bytes, now: float) -> None:
        """Reads the next bytes of the body, which came at `now`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(_DATA):
                self._event(line[len(_DATA) :].strip(), now)

    def ended(self) -> None:
        """Notes the end of the body; sets `failure` when the answer is not whole."""
        if self.failure is not None:
            return
        if not self.is_whole:
            self.failure = Failure(AnswerFailure.BROKEN, "the stream ended before [DONE]")
        elif self.first_at is None:
            self.failure = Failure(AnswerFailure.NO_TOKENS, "the answer has no tokens")

    def _event(self, payload: bytes, now: float) -> None:
        if payload == _DONE:
            self.is_whole = True
            return
        try:
            self._read(json.loads(payload), now)
        except (ValueError, TypeError, AttributeError, LookupError):
            self.failure = Failure(AnswerFailure.IN_STREAM, f"not an event of this API: {payload[:200]!r}")

    def _read(self, event: dict[str, Any], now: float) -> None:
        if error := event.get("error"):
            self.failure = Failure(AnswerFailure.IN_STREAM, error_text(error))
        elif choices := event.get("choices"):
            self._choice(choices[0], now)
        if usage := event.get("usage"):
            self._usage(usage)

    def _choice(self, choice: dict[str, Any], now: float) -> None:
        ids = choice.get("token_ids") or ()
        if "delta" in choice:
            text, has_tokens = _said(choice["delta"], bool(ids))
        else:  # a completion's text may be empty: half a character, or a special token
            text, has_tokens = choice.get("text") or "", True
        self.text += text
        self.token_ids += ids
        if has_tokens:
            self._arrived(now)

    def _arrived(self, now: float) -> None:
        if self.last_at is None:
            self.first_at = now
        else:
            self.gaps.append(now - self.last_at)
        self.last_at = now

    def _usage(self, usage: dict[str, Any]) -> None:
        self.usage_tokens = usage.get("completion_tokens", self.usage_tokens)
        self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
        details = usage.get("prompt_tokens_details") or {}
        self.cached_tokens = details.get("cached_tokens", self.cached_tokens)


def _said(delta: dict[str, Any], has_ids: bool) -> tuple[str, bool]:
    """The text of a chat delta, and whether tokens came with it: the first one may only name the role."""
    text = delta.get("content") or ""
    thought = delta.get("reasoning_content") or delta.get("reasoning") or delta.get("tool_calls")
    return text, bool(text or thought or has_ids)


def error_text(error: object) -> str:
    """The message of an OpenAI error object, or of what came in its place."""
    if isinstance(error, dict):
        inner = error.get("error", error)
        error = inner.get("message", inner) if isinstance(inner, dict) else inner
    return str(error)[:300]


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """Times are seconds from the start of the run. planned_at: time at which it should have been sent, from
    which latency counts. prompt_tokens: the endpoint's count, else the wanted number. first_at, last_at:
    times of its tokens; both are planned_at when none came. adapter: name; empty for the model itself."""

    conversation: int
    turn: int
    kind: str
    tenant: str
    planned_at: float
    sent_at: float
    first_at: float
    last_at: float
    ended_at: float
    wanted_prompt_tokens: int
    wanted_output_tokens: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    gaps: "array[float]" = field(default_factory=lambda: array("d"))
    failure: Failure | None = None
    adapter: str = ""

    @property
    def served(self) -> bool:
        return self.failure is None

    @property
    def has_tokens(self) -> bool:
        return self.last_at > self.planned_at

    @property
    def ttft(self) -> float:
        return self.first_at - self.planned_at

    @property
    def e2e(self) -> float:
        """Seconds to the last token."""
        return self.last_at - self.planned_at

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first; None with fewer than two."""
        return (self.last_at - self.first_at) / (self.output_tokens - 1) if self.output_tokens > 1 else None


@dataclass(frozen=True, slots=True)
class Sending:
    """A request without an answer yet: everything else that its record will hold."""

    conversation: int
    turn: int
    kind: str
    tenant: str
    planned_at: float
    prompt_tokens: int
    output_tokens: int
    adapter: str = ""

    def record(self, answer: Answer, sent_at: float, ended_at: float) -> LoadRecord:
        return LoadRecord(
            conversation=self.conversation,
            turn=self.turn,
            kind=self.kind,
            tenant=self.tenant,
            planned_at=self.planned_at,
            sent_at=sent_at,
            first_at=self.planned_at if answer.first_at is None else answer.first_at,
            last_at=self.planned_at if answer.last_at is None else answer.last_at,
            ended_at=ended_at,
            wanted_prompt_tokens=self.prompt_tokens,
            wanted_output_tokens=self.output_tokens,
            prompt_tokens=self.prompt_tokens if answer.prompt_tokens is None else answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            cached_tokens=answer.cached_tokens or 0,
            gaps=answer.gaps,
            failure=answer.failure,
            adapter=self.adapter,
        )
