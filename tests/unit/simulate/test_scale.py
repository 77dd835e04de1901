"""A thousand workers."""

import random
import time

from llmserve.core.ids import TenantId
from llmserve.simulate.mix import REQUEST_KINDS, RequestMix
from llmserve.simulate.report import Goals
from llmserve.simulate.run import Simulation
from llmserve.simulate.shape import Overrides
from tests.unit.simulate.conftest import MakeShape


def test_a_thousand_workers_serve_alike(make_shape: MakeShape) -> None:
    """Placement is by free seats: of 1,000 requests in 1 s nearly every worker gets one."""
    over = Overrides(prefill_workers=200, decode_workers=800, prefill_tokens_per_second=20_000.0)
    mix = RequestMix([(REQUEST_KINDS["short"], 1)], [(TenantId("t"), 1)], 1000.0, 1.0)
    requests = mix.requests(random.Random(1))
    started = time.process_time()
    simulation = Simulation(make_shape(over=over, scheduling={"routing": "least_loaded"}), requests)
    simulation.run()
    seconds = time.process_time() - started
    report = simulation.report(Goals())
    assert report.served == len(requests)
    decoded = [line.decode_tokens for line in report.workers if line.worker.startswith("decode")]
    assert len(decoded) == 800
    assert sum(1 for tokens in decoded if tokens) > 760
    assert seconds < 10
