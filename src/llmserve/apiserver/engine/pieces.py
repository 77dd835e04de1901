"""Text into tokens, without doing again what was done lately: chats begin with what was said before.

A tokenizer finds special tokens before it does anything else, and tokenizes the text on their two sides
apart. So a text is cut in front of each special token, and the tokens of its pieces are those of the whole,
exactly. Tokens for which that may not hold (they look at their neighbours, or overlap with others) are none
to cut at.
"""

import asyncio
import re
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

from tokenizers import AddedToken, Tokenizer

from llmserve.core.recent import RecentMap

_KEPT_TOKENS = 4_000_000  # 4 bytes each, and about as many of text
_AT_ONCE_CHARACTERS = 2000  # take less time than to hand them to a thread


class PieceTokenizer:
    """Used in one event loop. executor: where long texts are tokenized."""

    def __init__(self, tokenizer: Tokenizer, marks: Iterable[str], executor: Executor) -> None:
        """tokenizer: without truncation or padding. marks: the special tokens at which text is cut."""
        self._tokenizer, self._executor = tokenizer, executor
        self._mark = re.compile("|".join(map(re.escape, marks)))
        self._known: RecentMap[str, array[int]] = RecentMap(_KEPT_TOKENS)

    @classmethod
    def of(cls, tokenizer: Any, executor: Executor) -> "PieceTokenizer | None":
        """tokenizer: as transformers has it. None: it is none whose text can be cut."""
        if not getattr(tokenizer, "is_fast", False) or tokenizer.split_special_tokens:
            return None
        marks = marks_of(tokenizer.added_tokens_decoder.values())
        if not marks:
            return None
        own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # others change that one as they go
        own.no_truncation()
        own.no_padding()
        return cls(own, marks, executor)

    async def tokens(self, text: str) -> list[int]:
        """Returns the tokens of a text, without any that a tokenizer adds in front or at the end."""
        pieces = self._pieces(text)
        found = {piece: self._known.get(piece) for piece in pieces}
        missing = [piece for piece, tokens in found.items() if tokens is None]
        if sum(map(len, missing)) <= _AT_ONCE_CHARACTERS:
            made = self._encode(missing)
        else:
            made = await asyncio.get_running_loop().run_in_executor(self._executor, self._encode, missing)
        for piece, tokens in zip(missing, made, strict=True):
            found[piece] = tokens
            self._known.put(piece, tokens, len(tokens) + 1)
        result: list[int] = []
        for piece in pieces:
            result.extend(found[piece] or ())
        return result

    def _pieces(self, text: str) -> list[str]:
        starts = [mark.start() for mark in self._mark.finditer(text)]
        if not starts or starts[0] > 0:
            starts.insert(0, 0)
        return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]

    def _encode(self, pieces: Sequence[str]) -> list["array[int]"]:
        """Called in a thread, too."""
        encode = self._tokenizer.encode
        return [array("I", encode(piece, add_special_tokens=False).ids) for piece in pieces]


def marks_of(added: Iterable[AddedToken]) -> list[str]:
    """Returns those of a tokenizer's added tokens in front of which text can be cut."""
    tokens = list(added)
    if any(token.single_word for token in tokens):  # whether they are there depends on both neighbours
        return []
    return [token.content for token in tokens if _is_mark(token, [other.content for other in tokens])]


def _is_mark(token: AddedToken, contents: Iterable[str]) -> bool:
    """A token that may be normalized is found later than others. `lstrip` takes spaces in front of it."""
    text = token.content
    if not token.special or token.normalized or token.lstrip or text != text.strip() or not text:
        return False
    return not any(_overlaps(other, text) for other in contents if other != text)


def _overlaps(other: str, text: str) -> bool:
    """Returns whether the other token may be found where this one begins, or before and into it. The longer
    one wins of those that begin at one place."""
    into = (text[:length] for length in range(1, len(text)))
    return text in other or any(other != begin and other.endswith(begin) for begin in into)
