"""gRPC: generated messages, one way to serve, one way to call, one table of errors."""
