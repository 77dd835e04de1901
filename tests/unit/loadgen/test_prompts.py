"""Prompts of exact lengths that grow with their conversations."""

import pytest

from llmserve.loadgen.answer import Answer
from llmserve.loadgen.endpoint import scale_of
from llmserve.loadgen.prompts import ChatTalk, Scale, Texts, TextTalk, TokenTalk
from llmserve.loadgen.workload import PromptPiece

TEXTS = Texts(seed=1, token_ids=(1000, 2000))


def test_token_ids_have_the_length_and_the_range() -> None:
    ids = TEXTS.ids(PromptPiece("a", 5000))
    assert len(ids) == 5000
    assert min(ids) >= 1000
    assert max(ids) < 2000


@pytest.mark.parametrize("length", [1, 7, 512, 4001])
def test_pieces_of_one_name_begin_alike(length: int) -> None:
    assert TEXTS.ids(PromptPiece("a", 5000))[:length] == TEXTS.ids(PromptPiece("a", length))
    assert TEXTS.words(PromptPiece("a", 5000)).startswith(TEXTS.words(PromptPiece("a", length)))


def test_other_names_and_other_seeds_are_other_texts() -> None:
    assert TEXTS.ids(PromptPiece("a", 50)) != TEXTS.ids(PromptPiece("b", 50))
    assert TEXTS.ids(PromptPiece("a", 50)) != Texts(2, (1000, 2000)).ids(PromptPiece("a", 50))


def test_words_are_as_many_as_the_endpoint_counts_tokens() -> None:
    text = Texts(1, (0, 1), Scale(per_word=1.25)).words(PromptPiece("a", 1000))
    assert len(text.split()) == 800


def test_what_every_prompt_has_is_taken_off_once() -> None:
    talk = ChatTalk(Texts(1, (0, 1), Scale(1.0, fixed=30.0)))
    first = talk.ask((PromptPiece("shared", 50), PromptPiece("own", 100)))["messages"]
    assert len(first[0]["content"].split()) == 120
    talk.answered(Answer(text="yes"))
    again = talk.ask((PromptPiece("more", 10),))["messages"]
    assert [message["role"] for message in again] == ["user", "assistant", "user"]
    assert again[1]["content"] == "yes"
    assert len(again[2]["content"].split()) == 10


def test_a_prompt_of_text_grows_by_the_answer() -> None:
    talk = TextTalk(TEXTS)
    first = talk.ask((PromptPiece("a", 3),))["prompt"]
    talk.answered(Answer(text=" so"))
    assert talk.ask((PromptPiece("b", 2),))["prompt"].startswith(f"{first} so ")


def test_a_prompt_of_ids_grows_by_the_answers_ids_or_as_many_others() -> None:
    talk = TokenTalk(TEXTS)
    first = list(talk.ask((PromptPiece("a", 3),))["prompt"])
    talk.answered(Answer(token_ids=[5, 6]))
    second = list(talk.ask((PromptPiece("b", 2),))["prompt"])
    assert second[:5] == [*first, 5, 6]
    talk.answered(Answer(usage_tokens=4))
    assert len(talk.ask((PromptPiece("c", 1),))["prompt"]) == 7 + 4 + 1


def test_the_scale_comes_from_two_counts() -> None:
    scale = scale_of([(100, 140), (200, 250)])
    assert scale is not None
    assert scale.per_word == pytest.approx(1.1)
    assert scale.fixed == pytest.approx(30.0)
    assert scale_of([(100, None), (200, 250)]) is None
    assert scale_of([(100, 50), (200, 50)]) is None
