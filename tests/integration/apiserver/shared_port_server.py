"""An apiserver's HTTP server without anything behind it: `python shared_port_server.py SOCKET:TABLE:INDEX`.

Answers every request with its index. SIGTERM ends it in order."""

import asyncio
import signal
import sys
from typing import Any

import uvloop

from llmserve.apiserver.http.listener.server import HttpServer
from llmserve.apiserver.http.listener.shared_port import PortShare


async def serve(share: PortShare) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for answer in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{answer}.complete"})
            return
        body = str(share.index).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = HttpServer(app, "127.0.0.1:0", share)
    await server.start()
    print("ready", flush=True)
    await stop.wait()
    await server.aclose()


if __name__ == "__main__":
    uvloop.run(serve(PortShare.parse(sys.argv[1])))
