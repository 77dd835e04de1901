"""The transfer engine of a process: moves bytes between registered memory here and that of its peers.

The hand-over between engines (engines/kv_transfer) and the access to a KV store on another host
(kvstore/dram/client/remote.py) are its two clients. So the order of transports, probes, breakers, the
fallback, the fair turns and the limit of `budgets.max_kv_io_gbps` are the same for both.

- `engine` owns the transports and the memory, on one thread, and serves peers; `flights` are its transfers:
  submit, notice the end, cancel.
- `pair` is this process and one peer: connections, lanes, probes, and the fallback to the next transport.
- `choice` decides, without any I/O; `lane` shares a transport between requests; `probe` measures one.
- `counters` is what status and metrics show.
"""
