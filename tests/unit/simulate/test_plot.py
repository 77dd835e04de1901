"""The picture and the figures of docs/scheduling.md."""

from pathlib import Path

import pytest

from bench.placement import shares_plot
from bench.placement.shares_plot import BASIC, GOLD, SILVER
from llmserve.simulate.run import Simulation


@pytest.fixture(scope="module")
def simulated() -> Simulation:
    return shares_plot.simulated()


def test_the_picture_is_what_the_simulator_draws(simulated: Simulation) -> None:
    drawn = Path("docs/pictures/shares.svg").read_text()
    assert drawn == shares_plot.svg(simulated), "python -m bench.placement.shares_plot"


def test_the_shares_are_those_of_the_page(simulated: Simulation) -> None:
    """4 : 1 while two ask, 4 : 2 : 1 from when the third has come."""
    before, after = (simulated.timeline.sums(range(*span)) for span in ((5, 30), (35, 90)))
    assert before[GOLD] / before.total() == pytest.approx(4 / 5, rel=0.03)
    for tenant, weight in ((GOLD, 4), (SILVER, 2), (BASIC, 1)):
        assert after[tenant] / after.total() == pytest.approx(weight / 7, rel=0.05)
