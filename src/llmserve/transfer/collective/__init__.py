"""torch.distributed point-to-point: the transport that the manifest calls `nccl`.

It reports the name of the backend that runs: `nccl` for memory on a GPU, `gloo` for host memory. The two do
not talk to each other. Each connection has a process group of its own with two ranks, made from the backend's
class: the default group of the process, which belongs to the engine, is neither used nor changed. The two
ranks find each other over the connection itself, so no store runs. A group cannot be repaired: a transfer
that fails, times out or is cancelled ends its connection, and the next transfer makes a new one.

gloo of torch 2.13 on a CPU was run. NCCL was not.
"""

from llmserve.core.errors import TransportUnavailable
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.transfer.collective.backend import Backend, Gloo, Nccl
from llmserve.transfer.collective.carrier import GroupCarriers
from llmserve.transfer.twosided import TwoSidedTransport


class CollectiveTransport(TwoSidedTransport):
    """gpu: the index of the GPU with the memory to register; None for host memory."""

    def __init__(
        self, host: str = "127.0.0.1", gpu: int | None = None, credentials: Credentials = NO_CREDENTIALS
    ) -> None:
        """Errors: TransportUnavailable."""
        super().__init__(host, GroupCarriers(make_backend(host, gpu)), credentials)


def make_backend(host: str, gpu: int | None) -> Backend:
    """Errors: TransportUnavailable."""
    try:
        import torch.distributed
    except (ImportError, OSError) as error:
        raise TransportUnavailable(f"nccl: torch cannot be imported: {error}") from error
    if not torch.distributed.is_available():
        raise TransportUnavailable("nccl: this build of torch has no torch.distributed")
    return Gloo(host, torch) if gpu is None else Nccl(gpu, torch)


__all__ = ["CollectiveTransport"]
