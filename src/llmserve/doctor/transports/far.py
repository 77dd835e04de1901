"""python -m llmserve.doctor.transports.far KIND: holds memory with known bytes for near.py to read.

Prints the description of its memory, and ends when its stdin does.
"""

import select
import sys

import numpy as np
import numpy.typing as npt

from llmserve.core.errors import LLMServeError
from llmserve.transfer.base import Region, Transport
from llmserve.transfer.select import makers

BYTES = 16 << 20
DESCRIPTION_WORD = "LLMSERVE_DESCRIPTION"
HOST = "127.0.0.1"
_PROGRESS_SECONDS = 0.001


def known_bytes() -> npt.NDArray[np.uint8]:
    """The same in every process."""
    tile = np.random.default_rng(7).integers(0, 256, 1_048_583, np.uint8)
    return np.resize(tile, BYTES)


def serve(transport: Transport) -> None:
    memory = known_bytes()
    transport.register([Region(memory.ctypes.data, memory.nbytes)])
    print(DESCRIPTION_WORD, transport.describe().hex(), flush=True)
    pause = _PROGRESS_SECONDS if transport.needs_progress else None
    while not select.select([sys.stdin], [], [], pause)[0]:
        transport.progress()


def main() -> int:
    try:
        transport = makers(HOST)[sys.argv[1]]()
    except LLMServeError as error:
        print(error.message, file=sys.stderr)
        return 1
    try:
        serve(transport)
    finally:
        transport.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
