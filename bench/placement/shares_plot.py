"""The picture of docs/scheduling.md: `python -m bench.placement.shares_plot`. A test compares it.

Three tenants with weights 4, 2 and 1, each asking for more than there is; the second comes at 30 s.
"""

import random
from dataclasses import replace
from pathlib import Path

from llmserve.config.load import load_manifest
from llmserve.core.ids import TenantId
from llmserve.simulate.mix import RequestKind, RequestMix
from llmserve.simulate.report import shares_svg
from llmserve.simulate.run import Simulation
from llmserve.simulate.shape import ClusterShape, Overrides
from llmserve.traces import TracedRequest

PICTURE = Path("docs/pictures/shares.svg")
GOLD, SILVER, BASIC = TenantId("gold (4)"), TenantId("silver (2)"), TenantId("basic (1)")
SECONDS, SILVER_AT = 90, 30.0
_PLACES = 24


def simulated() -> Simulation:
    """24 places of 2 s each."""
    over = Overrides(
        prefill_workers=1, decode_workers=1, decode_step_seconds=0.05, weights=((GOLD, 4.0), (SILVER, 2.0))
    )
    shape = ClusterShape.of(load_manifest(Path("examples/sim.yaml")), over)
    policy = shape.router.policy
    policy = replace(policy, limits=replace(policy.limits, max_requests_in_flight=_PLACES))
    simulation = Simulation(replace(shape, router=replace(shape.router, policy=policy)), _requests())
    simulation.run()
    return simulation


def svg(simulation: Simulation) -> str:
    title = "Share of the tokens computed: weights 4, 2 and 1, all ask for more than there is"
    return shares_svg(simulation.timeline, (GOLD, SILVER, BASIC), SECONDS, title)


def _requests() -> list[TracedRequest]:
    mix = RequestMix(
        [(RequestKind(100, 40), 1.0)], [(GOLD, 1.0), (SILVER, 1.0), (BASIC, 1.0)], 40.0, SECONDS + 5.0
    )
    made = mix.requests(random.Random(1))
    return [one for one in made if one.tenant != SILVER or one.arrived_at >= SILVER_AT]


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(svg(simulated()))
