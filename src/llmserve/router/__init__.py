"""ClusterMembership, admission and placement. Never on the token path.

Pure, and free of gRPC: worker, membership, filters, plan and its choosers, session, controller.
wire, outbox, service and __main__ put them on the network.
"""
