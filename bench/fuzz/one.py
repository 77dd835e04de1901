"""python -m bench.fuzz.one TARGET FOLDER SECONDS: fuzzes one decoder.

Inputs are chosen by the code that they reach. Ends with the first input for which the decoder raises what it
may not; libFuzzer keeps it as FOLDER/crash-*."""

import sys
from contextlib import suppress
from pathlib import Path

from bench.fuzz.targets import TARGETS


def main() -> None:
    import atheris  # of the extra `fuzz`

    name, folder, seconds = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    with atheris.instrument_imports(include=["llmserve", "json", "vllm.v1.structured_output"]):
        case = TARGETS[name]()
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for index, seed in enumerate(case.seeds):
        (corpus / f"seed-{index}").write_bytes(seed)

    def once(data: bytes) -> None:
        with suppress(*case.expected):
            case.decode(data)

    flags = (
        "-print_final_stats=1",
        "-max_len=8192",
        f"-artifact_prefix={folder}/",
        "-rss_limit_mb=4096",
        "-timeout=10",
    )
    atheris.Setup([sys.argv[0], *flags, f"-max_total_time={seconds}", str(corpus)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
