from llmserve.engines.sim.step import Timing
from tests.unit.engines.sim.local_fabric import VirtualStepTimer


def test_a_step_costs_its_prefill_and_its_decode() -> None:
    timing = Timing(
        prefill_tokens_per_second=100, decode_step_seconds=0.02, decode_seconds_per_sequence=0.001
    )
    assert timing.step_seconds(50, 0) == 0.5
    assert timing.step_seconds(0, 3) == 0.02 + 3 * 0.001
    assert timing.step_seconds(50, 1) == 0.5 + 0.021


def test_all_zeros_take_no_time() -> None:
    assert Timing().step_seconds(10_000, 500) == 0.0


def test_proposals_make_a_step_longer_and_a_token_shorter() -> None:
    timing = Timing(100, 0.02, 0.001).proposing(3, 0.0005)
    assert timing == Timing(100, 0.02, 0.0025)
    assert timing.for_each_token(3, 0.5) == Timing(100, 0.02 / 1.875, 0.0025 / 1.875)
    assert timing.for_each_token(3, 1.0) == Timing(100, 0.005, 0.0025 / 4)
    assert timing.for_each_token(3, 0.0) == timing


async def test_virtual_time_passes_by_waiting() -> None:
    pace = VirtualStepTimer()
    await pace.sleep_until(5.0)
    await pace.sleep_until(3.0)
    assert pace.now() == 5.0
