"""What a cluster's workers still hold for requests: nothing, once all of them have ended."""

from bench.cluster import Cluster

_WORKERS = ("prefill-0", "decode-0")
_GAUGES = ("kv_leased_blocks", "kv_orphan_blocks", "worker_requests_running", "worker_requests_waiting")


def held(cluster: Cluster) -> dict[str, float]:
    """Returns the gauges that are not 0, as `worker gauge`."""
    samples = {worker: cluster.metrics(worker) for worker in _WORKERS}
    found = {f"{worker} {gauge}": samples[worker][gauge] for worker in _WORKERS for gauge in _GAUGES}
    return {name: value for name, value in found.items() if value}
