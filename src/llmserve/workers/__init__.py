"""A worker: one engine behind gRPC, known to the router and to the KV manager.

`worker` is the order of life; `service` answers apiservers, `sessions` decides what goes to whom;
`membership` talks to the router, `reporter` to the KV manager.
"""
