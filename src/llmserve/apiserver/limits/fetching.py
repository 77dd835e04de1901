"""vLLM's fetching of media, over connections whose addresses were checked."""

from collections.abc import Collection
from typing import Any

import aiohttp
import requests
from vllm.connections import HTTPConnection
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

from llmserve.apiserver.limits.addresses import CheckedResolver
from llmserve.core.errors import InvalidRequest
from llmserve.engines.vllm.environment import MEDIA_CONNECTOR


class MediaConnection(HTTPConnection):
    """Life: register -> fetches ... -> aclose (idempotent). hosts: names and addresses that are allowed. No
    proxy is used, because it would look up the names."""

    def __init__(self, hosts: Collection[str]) -> None:
        super().__init__()
        self._hosts = hosts
        self._async_client: aiohttp.ClientSession | None = None

    def register(self) -> None:
        """Lets the applications of this process fetch by it alone."""
        connection = self

        @MEDIA_CONNECTOR_REGISTRY.register(MEDIA_CONNECTOR)
        class CheckedMediaConnector(MediaConnector):
            def __init__(self, *given: Any, **named: Any) -> None:
                super().__init__(*given, **{**named, "connection": connection})

    def get_sync_client(self) -> requests.Session:
        """Errors: InvalidRequest, always: nothing of an apiserver waits for a host with its loop."""
        raise InvalidRequest("media of this kind cannot be fetched")

    async def get_async_client(self) -> aiohttp.ClientSession:
        if self._async_client is None:
            connector = aiohttp.TCPConnector(resolver=CheckedResolver(self._hosts))
            self._async_client = aiohttp.ClientSession(connector=connector, trust_env=False)
        return self._async_client

    async def aclose(self) -> None:
        session, self._async_client = self._async_client, None
        if session is not None:
            await session.close()
