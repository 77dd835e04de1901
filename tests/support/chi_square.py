"""Pearson's chi-square test of tokens that were drawn."""

import math
from collections.abc import Iterator, Sequence


def is_plausible(drawn: Sequence[int], chances: Sequence[float]) -> bool:
    """Says whether tokens may have been drawn with these probabilities (by token id). A right distribution
    fails about once in 100,000 times. Rare tokens count together."""
    terms = list(_terms(drawn, chances))
    freedom = len(terms) - 1
    return sum(terms) < freedom + 6 * math.sqrt(2 * freedom)


def _terms(drawn: Sequence[int], chances: Sequence[float]) -> Iterator[float]:
    total, rare_count, rare_chance = len(drawn), 0, 0.0
    for token, chance in enumerate(chances):
        count = drawn.count(token)
        if chance * total >= 5:
            yield (count - chance * total) ** 2 / (chance * total)
        else:
            rare_count, rare_chance = rare_count + count, rare_chance + chance
    if rare_chance * total >= 1:
        yield (rare_count - rare_chance * total) ** 2 / (rare_chance * total)
    elif rare_count > 10:
        yield math.inf
