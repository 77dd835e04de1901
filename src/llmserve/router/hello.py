"""How a session begins."""

import asyncio
from collections.abc import AsyncIterator

from llmserve.core.errors import InvalidRequest
from llmserve.rpc.gen.llmserve.v1 import router_pb2

_HELLO_TIMEOUT_SECONDS = 5.0


async def read_hello(requests: AsyncIterator[router_pb2.RouterSessionRequest]) -> router_pb2.Hello:
    """The first message. Errors: InvalidRequest when it is another, or does not come."""
    try:
        async with asyncio.timeout(_HELLO_TIMEOUT_SECONDS):
            message = await anext(aiter(requests), router_pb2.RouterSessionRequest())
    except TimeoutError as error:
        raise InvalidRequest(f"no Hello within {_HELLO_TIMEOUT_SECONDS:g} s") from error
    if not message.HasField("hello") or not message.hello.apiserver_id:
        raise InvalidRequest("a session begins with Hello, which names the apiserver")
    return message.hello
