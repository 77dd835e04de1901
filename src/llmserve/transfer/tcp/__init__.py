"""The transport that is always there: plain TCP sockets, blocking threads, no copies in Python.

The bytes of a transfer go over the connection that asked for it.
"""

from llmserve.transfer.tcp.carrier import SocketCarriers
from llmserve.transfer.twosided import TwoSidedTransport


class TcpTransport(TwoSidedTransport):
    def __init__(self, host: str = "127.0.0.1") -> None:
        """Errors: TransportUnavailable."""
        super().__init__(host, SocketCarriers())


__all__ = ["TcpTransport"]
