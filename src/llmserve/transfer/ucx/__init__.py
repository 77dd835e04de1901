"""UCX by way of UCXX, the maintained successor of ucx-py (docs/decisions/0006-ucxx-and-tag-messages.md).

The owner of the memory takes part: a peer asks it with small control messages, it checks the bounds and
sends or receives the bytes as tagged messages, straight from and to registered memory. UCXX has no
remote memory access in Python (0.52: endpoints offer tag, stream and active messages; ucp_get and
ucp_put are C++ only), so there was nothing to choose there; over TCP, where UCX emulates remote memory
access in software, the owner would take part all the same. Active messages were not taken because
the receiver cannot say where they go, which is a copy more.

The owner serves on a thread of its own, which sleeps in the kernel on UCX's event descriptor: no
spinning, also while data moves. Why the other choices of this package are what they are:

- Every wait ends. A receive that was matched cannot be taken back (ucp_request_cancel ignores it), so
  a batch goes in parts of 8 MiB, few at a time; `cancel` lets those in flight land, and gives the
  connection up if they do not. Closing it ends them, and nothing is written afterwards (tested with
  a peer that is stopped in the middle and then continued).
- That holds for rendezvous and for messages of one fragment, not for eager messages of several: these
  never end when the peer dies, and are written to after a close. Hence RNDV_THRESH.
- Without its registration cache UCX 1.21 crashes (null pointer in ucs_rcache_region_invalidate) when a
  peer dies in a rendezvous. The cache wants memory hooks; so RCACHE_ENABLE=y, which refuses
  to start without them, rather than the default, which goes without.
- Shared memory is left out: UCX does not notice there that a peer has died (10 s with a 1 s
  keepalive; over TCP 2 ms), and a sleeping thread pays a wake-up for each half MiB.
"""

from llmserve.transfer.ucx.transport import UcxTransport

__all__ = ["UcxTransport"]
