"""A client of the survival bench: greedy streamed requests, and what the simulated engines must say."""

import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from llmserve.engines.sim.sequence import TokenSource

VOCABULARY = 49_152  # of examples/sim.yaml
_RECONNECT_SECONDS = 0.2
_GIVE_UP_SECONDS = 150.0


@dataclass(slots=True)
class Answer:
    """error: empty when it is a whole answer. reconnects: how often it was sent again."""

    number: int
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    error: str = ""
    reconnects: int = 0
    seconds: float = 0.0
    ended_at: float = 0.0


class Client:
    """Thread-safe. urls: of the apiservers; another is tried when a connection fails or breaks."""

    def __init__(self, http: httpx.Client, urls: list[str], model: str) -> None:
        self._http, self._urls, self._model = http, urls, model

    def ask(self, number: int, prompt_tokens: int, output_tokens: int) -> Answer:
        answer = Answer(number, prompt_of(number, prompt_tokens))
        started = time.monotonic()
        for turn in itertools.count(number):
            try:
                self._stream(self._urls[turn % len(self._urls)], answer, output_tokens)
            except httpx.TransportError as error:
                answer.reconnects += 1
                answer.error = f"{type(error).__name__}: {error}"
                if time.monotonic() < started + _GIVE_UP_SECONDS:
                    time.sleep(_RECONNECT_SECONDS)
                    continue
            break
        answer.ended_at = time.monotonic()
        answer.seconds = answer.ended_at - started
        return answer

    def _stream(self, url: str, answer: Answer, output_tokens: int) -> None:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": answer.prompt,
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        answer.tokens, answer.error = [], ""
        with self._http.stream("POST", f"{url}/v1/completions", json=body) as response:
            if response.status_code != 200:
                answer.error = f"{response.status_code}: {response.read().decode(errors='replace')[:200]}"
                return
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    _take(answer, json.loads(line.removeprefix("data: ")))
        if not answer.error and len(answer.tokens) != output_tokens:
            answer.error = f"{len(answer.tokens)} of {output_tokens} tokens"


def _take(answer: Answer, event: dict[str, Any]) -> None:
    if "error" in event:
        answer.error = str(event["error"]["message"])
    for choice in event.get("choices", ()):
        answer.tokens.extend(choice.get("token_ids") or ())


def prompt_of(number: int, tokens: int) -> list[int]:
    """Another one for each number, of ordinary words."""
    return [300 + (number * 7919 + position * 31) % 40_000 for position in range(tokens)]


def expected_tokens(number: int, prompt: list[int], output_tokens: int = 24) -> list[int]:
    """What any simulated engine, or several in turn, say to this prompt."""
    source, tokens = TokenSource(prompt, VOCABULARY), []
    for _ in range(output_tokens):
        tokens.append(source.next_token())
        source.feed(tokens[-1])
    return tokens
