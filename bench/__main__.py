"""`python -m bench [NAME ...]`, or `python -m bench NAME OPTION ...`.

Measurements, by subsystem:

{benches}

Of the code itself, only when they are named:

{tools}
"""

import argparse
import importlib
import signal
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

# By folder of bench/. A bench NAME is NAME.py, whose run() returns its tables; the options that add_options()
# adds, where there is one, are run()'s arguments.
BENCHES: Mapping[str, Sequence[str]] = {
    "processes": ("startup", "idle", "console", "second-model", "recovery", "survival", "soak"),
    "gateway": ("latency", "gateway", "auth", "attack", "metrics", "agreement", "streams"),
    "placement": (
        "scheduler",
        "placement",
        "routing",
        "adapter-routing",
        "decode-slots",
        "adapter-fairness",
        "fairness",
        "simulate",
    ),
    "transfer": ("transfer", "staging", "push", "hybrid"),
    "store": ("directory", "pool", "store"),
    "tiers": ("eviction", "nvme", "object", "formats"),
    "adapters": ("adapters",),
    "engines": ("speculation",),
    "gpu": ("gpu",),
}
TOOLS: Mapping[str, Sequence[str]] = {"code": ("house", "mutation", "compare-trees"), "fuzz": ("fuzz",)}
FOLDERS = {name: folder for group in (BENCHES, TOOLS) for folder, names in group.items() for name in names}


def main(arguments: Sequence[str]) -> None:
    # Python ends at once by SIGTERM otherwise, and a bench's cluster would run on.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    names, options = list(arguments), list[str]()
    if names and not set(names) <= FOLDERS.keys():
        names, options = names[:1], names[1:]
    if not set(names) <= FOLDERS.keys():
        _explain(names[0])
        return
    for name in names or [name for group in BENCHES.values() for name in group]:
        print(f"\n## {name}\n\n{_run(name, options)}", flush=True)


def _explain(asked: str) -> None:
    found = [
        "\n".join(f"  {folder}: {', '.join(names)}" for folder, names in group.items())
        for group in (BENCHES, TOOLS)
    ]
    text = (__doc__ or "").format(benches=found[0], tools=found[1])
    if asked not in ("-h", "--help"):
        raise SystemExit(f"there is no bench {asked}\n\n{text}")
    print(text)


def _run(name: str, options: Sequence[str]) -> str:
    # Only what is asked for is imported: some benches import torch or vllm.
    bench = importlib.import_module(f"bench.{FOLDERS[name]}.{name.replace('-', '_')}")
    tables: str = bench.run(**vars(_parser(name, bench).parse_args(options)))
    return tables


def _parser(name: str, bench: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {name}",
        description=bench.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if hasattr(bench, "add_options"):
        bench.add_options(parser)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
