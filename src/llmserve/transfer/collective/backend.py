"""What differs between gloo and NCCL: the groups, the device, and how both are synchronised."""

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Protocol

from llmserve.transfer.base import Region
from llmserve.transfer.collective.rows import Copier

SILENCE = timedelta(seconds=10)  # a message takes longer: the peer is taken for dead


class Message(Protocol):
    """A tensor on its way; it and the tensor are kept until it has been waited for."""

    def wait(self) -> None:
        """At most SILENCE. Errors: RuntimeError, also when the group has been cut or the peer is gone."""


class Pair(Protocol):
    """A process group of two ranks. Messages arrive in the order in which they are sent; the other
    end receives as many bytes as are sent. Errors: RuntimeError."""

    def send(self, tensor: Any, acknowledged: bool) -> Message:
        """Unless acknowledged, which both ends say alike, it is waited for only when the other end is
        known to have it."""

    def receive(self, tensor: Any, acknowledged: bool) -> Message: ...

    def cut(self) -> None:
        """From any thread: ends all messages with an error. When it returns no tensor is touched any
        more. Idempotent."""


class Backend(Protocol):
    """Shared by the carriers of a transport. Tensors and stores are torch's."""

    name: str
    identity: str  # both ends must have the same
    copier: Copier

    def map(self, region: Region) -> Any:
        """A uint8 tensor over registered memory."""

    def staging(self, size_bytes: int) -> Any:
        """An uninitialised uint8 tensor on the same device."""

    def pair(self, store: Any, rank: int) -> Pair:
        """Both ends make it at once. Errors: RuntimeError, and those of the store."""

    def stream(self) -> AbstractContextManager[None]:
        """What is copied inside has been copied when it is left."""

    def close(self) -> None:
        """Idempotent."""


def identity(name: str, torch: Any) -> str:
    """Backends of different releases need not understand each other; those of different builds do."""
    return f"{name} of torch {torch.__version__.split('+')[0]}"
