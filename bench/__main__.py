"""`python -m bench [NAME ...]`."""

import argparse
from collections.abc import Callable
from functools import partial

from bench import directory, eviction, gateway, idle, latency, push, recovery, transfer

NAMES = ("latency", "idle", "gateway", "recovery", "transfer", "push", "eviction", "directory")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="default: all")
    parser.add_argument(
        "--kinds", nargs="+", default=(), help="transfer: the transports; default: all that work"
    )
    parser.add_argument("--repeats", type=int, default=3, help="transfer: figures for each median")
    arguments = parser.parse_args()
    benches: dict[str, Callable[[], str]] = {
        "latency": latency.run,
        "idle": idle.run,
        "gateway": gateway.run,
        "recovery": recovery.run,
        "eviction": eviction.run,
        "directory": directory.run,
        "transfer": partial(transfer.run, arguments.kinds, arguments.repeats),
        "push": push.run,
    }
    for name in arguments.names or NAMES:
        print(f"\n## {name}\n\n{benches[name]()}", flush=True)


if __name__ == "__main__":
    main()
