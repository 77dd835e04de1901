"""`python -m bench [NAME ...]`."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from bench import (
    agreement,
    directory,
    eviction,
    fairness,
    gateway,
    idle,
    latency,
    metrics,
    placement,
    pool,
    push,
    recovery,
    routing,
    scheduler,
    simulate,
    soak,
    startup,
    survival,
    tiers,
    tiers_object,
    transfer,
)

NAMES = (
    *("startup", "latency", "idle", "gateway", "metrics", "recovery", "transfer", "push"),
    *("scheduler", "placement", "routing", "survival", "soak"),
    *("fairness", "simulate"),
    *("eviction", "directory", "pool", "nvme", "object", "formats", "store", "agreement"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="default: all")
    parser.add_argument(
        "--kinds", nargs="+", default=(), help="transfer: the transports; default: all that work"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="transfer, pool, nvme, object, agreement: rounds"
    )
    parser.add_argument("--directory", type=Path, default=Path(), help="nvme: on the disk to measure")
    parser.add_argument("--parts", nargs="+", default=(), help="store: first-token, cost, chat; default: all")
    parser.add_argument("--real", action="store_true", help="survival: with vLLM, fewer requests")
    arguments = parser.parse_args()
    benches: dict[str, Callable[[], str]] = {
        "startup": startup.run,
        "latency": latency.run,
        "idle": idle.run,
        "gateway": gateway.run,
        "metrics": metrics.run,
        "recovery": recovery.run,
        "transfer": partial(transfer.run, arguments.kinds, arguments.repeats),
        "push": push.run,
        "scheduler": scheduler.run,
        "placement": placement.run,
        "routing": routing.run,
        "survival": partial(survival.run, real=arguments.real),
        "soak": soak.run,
        "fairness": fairness.run,
        "simulate": simulate.run,
        "eviction": eviction.run,
        "directory": directory.run,
        "pool": partial(pool.run, arguments.repeats),
        "nvme": partial(tiers.run, arguments.directory, arguments.repeats),
        "object": partial(tiers_object.run, arguments.repeats),
        "formats": _formats,
        "agreement": partial(agreement.run, arguments.repeats),
        "store": partial(_store, arguments.parts),
    }
    for name in arguments.names or NAMES:
        print(f"\n## {name}\n\n{benches[name]()}", flush=True)


def _formats() -> str:
    from bench import formats  # imports torch: not for the others

    return formats.run()


def _store(parts: Sequence[str]) -> str:
    from bench import store  # imports vllm

    return store.run(tuple(parts) or store.PARTS)


if __name__ == "__main__":
    main()
