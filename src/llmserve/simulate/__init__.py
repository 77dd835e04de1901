"""`llmserve simulate`: the router's own code against simulated engines in virtual time.

A trace or a mix of requests goes in, a report comes out. The decisions are those of a real cluster
(router.controller with its scheduler, planner and prefix index; engines/sim's batching and block pool). What
is left out is all that takes no decision: HTTP, gRPC, tokenizing, and the tiers of the KV store.
"""
