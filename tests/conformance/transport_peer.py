"""The far end of tests/conformance/test_transport.py: a process of its own.

argv: transport kind, bytes a region, seed. Prints the description in hex, then answers commands on
stdin, a line each, and serves its peers meanwhile.
"""

import select
import sys
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from llmserve.transfer.base import Region, Transport
from llmserve.transfer.select import makers

REGIONS = 2


def pattern(seed: int, region: int, size: int) -> npt.NDArray[np.uint8]:
    """Known bytes; the same in the test."""
    tile = np.random.default_rng([seed, region]).integers(0, 256, 1_048_583, np.uint8)
    return np.resize(tile, size)


class Far:
    def __init__(self, transport: Transport, size: int, seed: int) -> None:
        self.transport = transport
        self.size = size
        self.closed = False
        self.kept: list[npt.NDArray[np.uint8]] = []
        self.register(seed)

    def register(self, seed: int) -> str:
        self.memory = [pattern(seed, region, self.size) for region in range(REGIONS)]
        self.kept.extend(self.memory)
        self.transport.register([Region(m.ctypes.data, m.nbytes) for m in self.memory])
        return self.transport.describe().hex()

    def checksum(self, region: int, offset: int, length: int) -> str:
        return str(zlib.crc32(self.memory[region][offset : offset + length].tobytes()))

    def close(self) -> str:
        self.transport.close()
        self.closed = True
        return "closed"


def commands(far: Far) -> Iterator[list[str]]:
    """Lines of stdin until it ends; progress between them."""
    while True:
        pause = 0.001 if far.transport.needs_progress and not far.closed else None
        ready, _, _ = select.select([sys.stdin], [], [], pause)
        if not ready:
            far.transport.progress()
            continue
        line = sys.stdin.readline()
        if not line:
            return
        yield line.split()


def main() -> None:
    kind, size, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    far = Far(makers("127.0.0.1")[kind](), size, seed)
    print(far.transport.describe().hex(), flush=True)
    for name, *arguments in commands(far):
        answer = getattr(far, name)(*map(int, arguments))
        print(answer, flush=True)
    far.transport.close()


if __name__ == "__main__":
    main()
