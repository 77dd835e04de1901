"""The transport that is always there: plain TCP sockets, blocking threads, no copies in Python.

It serves peers on threads of its own, which sleep in the kernel while nothing is asked of them.
"""

from llmserve.transfer.tcp.transport import TcpTransport

__all__ = ["TcpTransport"]
