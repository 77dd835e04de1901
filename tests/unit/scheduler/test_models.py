"""The share of a model in the budgets."""

from llmserve.scheduler.models import NO_CAPACITY, Capacity, ModelShares


def test_a_model_without_engines_has_no_capacity() -> None:
    assert Capacity(0, 0.0, False, 0) == NO_CAPACITY


def test_a_share_counts_while_requests_of_another_model_wait() -> None:
    shares = ModelShares()
    assert (shares.part("a"), shares.share("a")) == (1.0, 1.0)
    shares.shares = {"a": 0.25}
    assert (shares.part("a"), shares.share("a"), shares.part("b"), shares.share("b")) == (1.0, 0.25, 1.0, 1.0)
    shares.waiting = lambda: frozenset({"a"})
    assert shares.part("a") == 1.0, "its own requests are no others"
    shares.waiting = lambda: frozenset({"a", "b"})
    assert (shares.part("a"), shares.part("b")) == (0.25, 1.0)
