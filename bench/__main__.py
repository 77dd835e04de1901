"""`python -m bench [NAME ...]`."""

import argparse

from bench import gateway, idle, latency, recovery

BENCHES = {
    "latency": latency.run,
    "idle": idle.run,
    "gateway": gateway.run,
    "recovery": recovery.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], help="default: all")
    for name in parser.parse_args().names or BENCHES:
        print(f"\n## {name}\n\n{BENCHES[name]()}", flush=True)


if __name__ == "__main__":
    main()
