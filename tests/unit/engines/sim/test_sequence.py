"""The next token depends on the sequence so far and on the adapter, and on nothing else."""

from itertools import combinations

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.ids import AdapterDigest
from llmserve.engines.sim.sequence import TokenSource


def draw(prompt: list[int], count: int, adapter: AdapterDigest = BASE_MODEL) -> list[int]:
    source, tokens = TokenSource(prompt, 1000, adapter), []
    for _ in range(count):
        tokens.append(source.next_token())
        source.feed(tokens[-1])
    return tokens


def test_the_same_prompt_gives_the_same_tokens() -> None:
    assert draw([1, 2, 3], 20) == draw([1, 2, 3], 20)
    assert draw([1, 2, 3], 20) != draw([1, 2, 4], 20)


def test_an_adapter_gives_other_tokens() -> None:
    answers = [
        draw([1, 2, 3], 20, adapter) for adapter in (BASE_MODEL, AdapterDigest("a"), AdapterDigest("b"))
    ]
    assert all(left != right for left, right in combinations(answers, 2))


def test_going_on_from_prompt_and_tokens_so_far_changes_nothing() -> None:
    whole = draw([5, 6], 20)
    assert draw([5, 6, *whole[:7]], 13) == whole[7:]


def test_a_banned_token_does_not_come() -> None:
    source = TokenSource([1], 4)
    token = source.next_token()
    assert source.next_token({token}) == (token + 1) % 4


def test_banning_everything_still_gives_a_token() -> None:
    assert TokenSource([1], 3).next_token({0, 1, 2}) in range(3)
