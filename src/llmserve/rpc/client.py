"""One way to open a channel."""

import grpc.aio

from llmserve.rpc.options import CHANNEL_OPTIONS


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to host:port, not yet connected. The caller closes it."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
