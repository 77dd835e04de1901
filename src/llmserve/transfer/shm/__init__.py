"""The transport between processes of one host: the kernel copies once, straight from the memory of
one process to that of the other. The memory stays what it was, whoever allocated it.

The system calls are process_vm_readv and process_vm_writev. Measured beside them: /proc/PID/mem
copies twice, at half the speed or less; mapping shared memory over registered memory would take it
away from the allocator that owns it. Several threads are no faster than one where memory is the limit.

It is one-sided: the peer's threads do nothing. So, as with every such transport, leases are what keeps
its owner from reusing memory under a reader; and descriptions are taken from trusted peers only.
"""

from llmserve.transfer.shm.transport import ShmTransport

__all__ = ["ShmTransport"]
