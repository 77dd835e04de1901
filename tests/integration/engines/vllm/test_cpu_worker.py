"""What an engine on a CPU pays for groups of processes that it does not need."""

from pathlib import Path

import torch.distributed as dist

from llmserve.engines.vllm.cpu_worker import one_gloo_device


def _gloo_threads() -> int:
    """Counts those that wake by themselves. A group's `pt_gloo_runloop` sleeps until it has work."""
    names = ((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir())
    return sum(name == "gloo_tcp_loop" for name in names)


def test_all_groups_of_a_process_have_one_thread() -> None:
    before = _gloo_threads()
    with one_gloo_device():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        groups = [dist.new_group([0], backend="gloo") for _ in range(3)]
    try:
        assert _gloo_threads() == before + 1
        for group in groups:
            dist.barrier(group=group)
    finally:
        dist.destroy_process_group()
