"""From pieces to prompts: token ids, text or chat messages, which grow with the conversation."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from llmserve.loadgen.answer import Answer
from llmserve.loadgen.workload import PromptPiece

# Words that nearly every tokenizer has as one token each, with the space before it.
_WORDS = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point
home water room mother area money story fact month lot right study book eye job word business issue
side kind head house service friend father power hour game line end member law car city community
name president team minute idea body information back parent face others level office door health
person art war history party result change morning reason research girl guy moment air teacher force
education
"""
WORDS = tuple(_WORDS.split())


class PromptForm(StrEnum):
    TOKENS = "token ids"
    TEXT = "text"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class Scale:
    """How the endpoint counts words: a prompt has fixed + per_word x words tokens."""

    per_word: float = 1.0
    fixed: float = 0.0


@dataclass(frozen=True, slots=True)
class Texts:
    """The endless text of each name. token_ids: range from which ids are drawn, without its end."""

    seed: int
    token_ids: tuple[int, int]
    scale: Scale = Scale()

    def ids(self, piece: PromptPiece) -> list[int]:
        drawn: list[int] = self._draw(piece.name, *self.token_ids, piece.tokens)
        return drawn

    def words(self, piece: PromptPiece) -> str:
        """About piece.tokens tokens of text, without those that every prompt has."""
        count = max(1, round(piece.tokens / self.scale.per_word))
        return "".join(f" {WORDS[word]}" for word in self._draw(piece.name, 0, len(WORDS), count))

    def _draw(self, name: str, low: int, high: int, count: int) -> list[int]:
        digest = hashlib.blake2b(f"{self.seed}:{name}".encode(), digest_size=8).digest()
        drawn: list[int] = np.random.default_rng(int.from_bytes(digest)).integers(low, high, count).tolist()
        return drawn


class Talk(ABC):
    """One conversation as its prompt grows: ask, then answered, then ask again."""

    @abstractmethod
    def ask(self, pieces: Sequence[PromptPiece]) -> dict[str, Any]:
        """The fields of the request that hold the prompt, with the whole conversation so far."""

    @abstractmethod
    def answered(self, answer: Answer) -> None: ...


class TokenTalk(Talk):
    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._ids: list[int] = []

    def ask(self, pieces: Sequence[PromptPiece]) -> dict[str, Any]:
        for piece in pieces:
            self._ids += self._texts.ids(piece)
        return {"prompt": self._ids}

    def answered(self, answer: Answer) -> None:
        """Adds the answer to the conversation. For an endpoint that gives no token ids, a made-up answer of
        the same length stands in."""
        made_up = PromptPiece(f"answer{len(self._ids)}", answer.output_tokens)
        self._ids += answer.token_ids or self._texts.ids(made_up)


class TextTalk(Talk):
    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._text = ""

    def ask(self, pieces: Sequence[PromptPiece]) -> dict[str, Any]:
        self._text += _said(self._texts, pieces, is_first=not self._text)
        return {"prompt": self._text}

    def answered(self, answer: Answer) -> None:
        self._text += answer.text


class ChatTalk(Talk):
    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._messages: list[dict[str, str]] = []

    def ask(self, pieces: Sequence[PromptPiece]) -> dict[str, Any]:
        said = _said(self._texts, pieces, is_first=not self._messages)
        self._messages.append({"role": "user", "content": said})
        return {"messages": self._messages}

    def answered(self, answer: Answer) -> None:
        self._messages.append({"role": "assistant", "content": answer.text})


TALKS: dict[PromptForm, Callable[[Texts], Talk]] = {
    PromptForm.TOKENS: TokenTalk,
    PromptForm.TEXT: TextTalk,
    PromptForm.CHAT: ChatTalk,
}


def _said(texts: Texts, pieces: Sequence[PromptPiece], *, is_first: bool) -> str:
    """The tokens that every prompt has besides its words are taken off the last piece, which no other prompt
    shares."""
    *before, last = pieces
    fixed = round(texts.scale.fixed) if is_first else 0
    own = PromptPiece(last.name, max(1, last.tokens - fixed))
    return "".join(texts.words(piece) for piece in (*before, own))
