"""Tokens of pieces are those of the whole text, for each kind of tokenizer."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from llmserve.apiserver.engine.pieces import PieceTokenizer, marks_of

CORPUS = [
    "the quick brown fox jumps over the lazy dog and says hello there",
    "user system assistant it's 1234",
]
MARKS = ["<|im_start|>", "<|im_end|>", "[INST]", "</s>", "<|eot|>"]


def _byte_level(**options: Any) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(**options)
    return _trained(
        made, trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )


def _metaspace(scheme: str) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return _trained(made, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"]))


def _llama_2() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _trained(made, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"]))


def _word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.BertNormalizer(), normalizers.Strip()]
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _trained(made, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]"]))


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    trainer.show_progress = False
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS])
    tokenizer.add_special_tokens(
        [AddedToken("<|greedy|>", special=True, normalized=False, lstrip=True, rstrip=True)]
    )
    tokenizer.add_tokens([AddedToken("hello there", normalized=True), AddedToken("fox", rstrip=True)])
    tokenizer.add_tokens([AddedToken("<|im_", normalized=False)])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": lambda: _byte_level(add_prefix_space=False),
    "bytes, with a space in front": lambda: _byte_level(add_prefix_space=True),
    "metaspace, first": lambda: _metaspace("first"),
    "metaspace, always": lambda: _metaspace("always"),
    "prepended": _llama_2,
    "word pieces": _word_piece,
}

WORDS = [
    *MARKS,
    "<|greedy|>",
    "hello there",
    "fox",
    " ",
    "  ",
    "\n",
    "\n\n",
    "é",
    "e\u0301",
    "日本",
    "a",
    "The",
    "'s",
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=14).map("".join)
TEMPLATES: dict[str, Callable[[list[str]], str]] = {
    "chatml": lambda said: (
        "".join(f"<|im_start|>user\n{one}<|im_end|>\n" for one in said) + "<|im_start|>assistant\n"
    ),
    "llama": lambda said: "<s>" + "".join(f"[INST] {one} [/INST] so </s>" for one in said),
    "none": "\n".join,
}


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, executor: ThreadPoolExecutor) -> tuple[Tokenizer, PieceTokenizer]:
    whole: Tokenizer = KINDS[request.param]()
    marks = marks_of(whole.get_added_tokens_decoder().values())
    assert set(MARKS) <= set(marks) <= {*MARKS, "<unk>", "[UNK]"}
    return whole, PieceTokenizer(whole, marks, executor)


@settings(max_examples=60, deadline=None)
@given(said=st.lists(TEXTS, max_size=5), template=st.sampled_from(list(TEMPLATES)))
async def test_chats_have_the_tokens_of_the_whole(
    pair: tuple[Tokenizer, PieceTokenizer], said: list[str], template: str
) -> None:
    whole, pieces = pair
    text = TEMPLATES[template](said)
    expected = whole.encode(text, add_special_tokens=False).ids
    assert await pieces.tokens(text) == expected  # perhaps of pieces that are known
    assert await pieces.tokens(text) == expected  # of pieces that are known


async def test_a_long_text_is_tokenized_in_a_thread(pair: tuple[Tokenizer, PieceTokenizer]) -> None:
    whole, pieces = pair
    text = "<|im_end|>the lazy dog<|im_start|>" * 200
    assert await pieces.tokens(text) == whole.encode(text, add_special_tokens=False).ids


async def test_what_is_known_is_not_tokenized_again(executor: ThreadPoolExecutor) -> None:
    class Counting:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def encode(self, text: str, add_special_tokens: bool) -> Any:
            self.seen.append(text)
            return whole.encode(text, add_special_tokens=add_special_tokens)

    whole, counting = KINDS["bytes"](), Counting()
    pieces: Any = PieceTokenizer(counting, MARKS, executor)  # type: ignore[arg-type]
    await pieces.tokens("[INST]a</s>")
    await pieces.tokens("[INST]a</s>[INST]b")
    assert counting.seen == ["[INST]a", "</s>", "[INST]b"]


def token(content: str, **flags: Any) -> AddedToken:
    return AddedToken(content, **{"special": True, "normalized": False, **flags})


@pytest.mark.parametrize(
    ("added", "marks"),
    [
        ([token("<a>"), token("<b>")], ["<a>", "<b>"]),
        ([token("<a>", lstrip=True)], []),
        ([token("<a>", rstrip=True)], ["<a>"]),
        ([token("<a>", normalized=True)], []),
        ([token("<a>", special=False)], []),
        ([token(" <a>")], []),
        ([token("<a>"), token("<b>", single_word=True)], []),
        ([token("<a>"), token("x<a>y", special=False)], []),  # is found in its place
        ([token("<a>"), token("x<", special=False)], []),  # takes its beginning
        ([token("<a>"), token("x<a", special=False)], []),
        ([token("<a>"), token(">x", special=False)], ["<a>"]),  # comes too late
        ([token("<a"), token("<a>")], ["<a>"]),
    ],
)
def test_where_text_is_cut(added: list[AddedToken], marks: list[str]) -> None:
    assert marks_of(added) == marks


def _plainly(contents: list[str]) -> list[str]:
    """By the definition: no other token may be found where a mark begins, or before and into it."""

    def overlaps(other: str, text: str) -> bool:
        into = (text[:length] for length in range(1, len(text)))
        return text in other or any(other != begin and other.endswith(begin) for begin in into)

    return [
        text for text in contents if not any(overlaps(other, text) for other in contents if other != text)
    ]


@given(st.lists(st.text("ab<>", min_size=1, max_size=6), unique=True, max_size=12))
def test_marks_overlap_with_no_other_token(contents: list[str]) -> None:
    added = [AddedToken(text, special=True, normalized=False) for text in contents]
    assert marks_of(added) == _plainly(contents)


@pytest.mark.timeout(30)
def test_thousands_of_tokens_are_looked_at_once_each() -> None:
    """As of Gemma 3, whose API layer did not start within minutes when each was compared with each."""
    names = [f"<unused{number}>" for number in range(6000)]
    added = [AddedToken(name, special=True, normalized=False) for name in names]
    assert marks_of(added) == names
