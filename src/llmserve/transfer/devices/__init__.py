"""Memory of GPUs, for transports that reach only host memory, and for whoever looks at transferred bytes.

- `copies`: the contract `Copies`, between the memory of one device and pinned host memory, in the order of a
  stream, and `Mark`, a point in a stream; `HostCopies`, where everything has ended at once.
- `cuda`: `CudaCopies` of a GPU. `fake`: `FakeDevice`, whose copies end late and whose addresses nobody can
  read; tests and benchmarks run on it where no GPU is at hand.
- `staging`: `Staging`, a few pinned slots through which bytes pass between a device and a socket.

A copy never waits for the kernels that compute KV. Whoever starts it has seen the mark of those kernels
reached.
"""

from llmserve.transfer.devices.copies import REACHED, Bytes, Copies, HostCopies, Mark, RegionCopies
from llmserve.transfer.devices.staging import Staging

__all__ = ["REACHED", "Bytes", "Copies", "HostCopies", "Mark", "RegionCopies", "Staging"]
