"""Text into tokens, without doing again what was done lately: chats begin with what was said before.

A tokenizer finds special tokens before it does anything else, and tokenizes the text on their two sides
apart. So a text is cut in front of each special token, and the tokens of its pieces are those of the whole,
exactly. Tokens for which that may not hold (they look at their neighbours, or overlap with others) are none
to cut at.
"""

import asyncio
import re
from array import array
from bisect import bisect_left
from collections import Counter
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
        self._marks = frozenset(marks)
        self._mark_lengths = sorted({len(mark) for mark in self._marks})
        self._mark_begin = re.compile(f"[{re.escape(''.join({mark[0] for mark in self._marks}))}]")
        self._known: RecentMap[str, array[int]] = RecentMap(_KEPT_TOKENS)

    @classmethod
    def of(cls, tokenizer: Any, executor: Executor) -> "PieceTokenizer | None":
        """tokenizer: that of a model. None: it is none of transformers, or none whose text can be cut."""
        if not getattr(tokenizer, "is_fast", False) or getattr(tokenizer, "split_special_tokens", True):
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
        begins = (begin.start() for begin in self._mark_begin.finditer(text))
        starts = [start for start in begins if self._is_mark_at(text, start)]
        if not starts or starts[0] > 0:
            starts.insert(0, 0)
        return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]

    def _is_mark_at(self, text: str, start: int) -> bool:
        return any(text[start : start + length] in self._marks for length in self._mark_lengths)

    def _encode(self, pieces: Sequence[str]) -> list["array[int]"]:
        """Called in a thread, too."""
        encode = self._tokenizer.encode
        return [array("I", encode(piece, add_special_tokens=False).ids) for piece in pieces]


def marks_of(added: Iterable[AddedToken]) -> list[str]:
    """Returns those of a tokenizer's added tokens in front of which text can be cut. Some tokenizers have
    thousands of them."""
    tokens = list(added)
    if any(token.single_word for token in tokens):  # whether they are there depends on both neighbours
        return []
    overlaps = _Overlaps([token.content for token in tokens])
    return [token.content for token in tokens if _is_found_first(token) and token.content not in overlaps]


def _is_found_first(token: AddedToken) -> bool:
    """A token that may be normalized is found later than others. `lstrip` takes spaces in front of it."""
    text = token.content
    return bool(token.special and not token.normalized and not token.lstrip and text and text == text.strip())


class _Overlaps:
    """Contains each token in front of which another one may be found that goes on into it. Of those that
    begin at one place, the longer one wins."""

    def __init__(self, contents: Iterable[str]) -> None:
        endings = [text[start:] for text in set(contents) for start in range(len(text))]
        self._endings = sorted(endings)
        self._proper_endings = Counter(endings)
        self._proper_endings.subtract(set(contents))

    def __contains__(self, text: object) -> bool:
        assert isinstance(text, str)
        begins = (text[:length] for length in range(1, len(text)))
        return self._is_within_another(text) or any(
            self._proper_endings[begin] > text.endswith(begin) for begin in begins
        )

    def _is_within_another(self, text: str) -> bool:
        """Then another ending than its own whole begins with it."""
        next_one = bisect_left(self._endings, text) + 1
        return next_one < len(self._endings) and self._endings[next_one].startswith(text)
