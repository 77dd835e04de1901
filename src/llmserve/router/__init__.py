"""Membership, admission and placement of requests. The router is never on the token path.

The deciding half is pure and free of gRPC: controller, requests, sessions, workers/, placement/, prefix/ and
leader/election. The others put it on the network.
"""
