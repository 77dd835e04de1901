"""UCX by way of UCXX, the maintained successor of ucx-py (docs/decisions/0008-ucxx-and-tagged-messages.md).

The owner of the memory takes part: a peer asks it with small control messages, it checks the bounds and
sends or receives the bytes as tagged messages, straight from and to registered memory. Why not remote
memory access: UCXX 0.52 does not offer it in Python (an endpoint has tag, stream and active messages;
ucp_get and ucp_put are C++ only). Where it would be faster, on one host, `nixl` and `shm` are (measured
together: 10 GB/s against 3); over TCP, UCX emulates it in software and the owner takes part all the same.
The receiver of an active message cannot say where it goes: a copy more.

A thread serves, and sleeps in the kernel on UCX's event descriptor, also while data moves. The other
choices of this package come from what UCX 1.21 does when something ends:

- A receive that was matched cannot be taken back. So a batch goes in parts, two at a time: `cancel` lets
  those land, and if they do not soon, the connection is closed; then nothing is written any more.
- That holds for rendezvous and for messages of one fragment. Eager messages of several fragments never end
  when their sender dies, and are written to after a close: RNDV_THRESH is below every fragment's size.
- Without its registration cache UCX crashes when a peer dies in a rendezvous (null pointer in
  ucs_rcache_region_invalidate): RCACHE_ENABLE=y, which refuses to start where that cannot work.
- UCX crashes when one socket's event closes another one of the same batch (uct_tcp_iface_handle_events):
  TCP_MAX_POLL=1 makes batches of one.
- Shared memory does not notice that a peer has died (not in 10 s, with a keepalive of 1 s; TCP in 2 ms):
  TLS=^sm.
- The other end does not notice that an endpoint was closed: goodbyes are said, and waited for.
- A garbled address of a worker ends the process: addresses carry a checksum.

Memory is that of the host. For memory of a GPU, a Region would have to say so: ucxx takes what has
`__cuda_array_interface__`; small pieces could then not be packed by numpy, and the engine's stream must be
synchronised before the owner sends.
"""

from llmserve.transfer.ucx.transport import UcxTransport

__all__ = ["UcxTransport"]
