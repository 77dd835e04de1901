"""Reads and writes for networks where both ends take part: tcp and collective are made of this.

Each process listens. Who wants bytes dials, greets, and then asks: one request at a time on a
connection, each served by a sleeping thread of the owner. What differs is the carrier, the way the
bytes themselves go: the same socket, or another channel that is opened beside it.
"""

from llmserve.transfer.twosided.carrier import Carrier, Carriers
from llmserve.transfer.twosided.transport import TwoSidedTransport

__all__ = ["Carrier", "Carriers", "TwoSidedTransport"]
