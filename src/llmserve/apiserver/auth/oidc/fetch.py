"""A small document of JSON from an issuer, within bounds."""

import json
from typing import Any

import aiohttp

from llmserve.config.schema.callers import is_safe_url
from llmserve.core.errors import Unavailable

_MOST_BYTES = 256 * 1024
_SECONDS = 5.0  # for all of it: name, connection, TLS, answer


async def fetch_json(url: str) -> dict[str, Any]:
    """Follows no redirects, and asks only over https, except on loopback. Errors: Unavailable, also for an
    answer that is too large or of another form."""
    if not is_safe_url(url):
        raise Unavailable(f"{url} is not asked: it is neither https nor on loopback")
    try:
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, allow_redirects=False, headers={"accept": "application/json"}) as answer,
        ):
            if answer.status != 200:
                raise Unavailable(f"{url} answers with status {answer.status}")
            found = json.loads(await _body(answer, url))
    except TimeoutError as error:
        raise Unavailable(f"{url} does not answer within {_SECONDS:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise Unavailable(f"{url} cannot be asked: {str(error) or type(error).__name__}") from error
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"{url} answers with what is no JSON") from error
    if not isinstance(found, dict):
        raise Unavailable(f"{url} answers with what is no JSON object")
    return found


async def _body(answer: aiohttp.ClientResponse, url: str) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > _MOST_BYTES:
            raise Unavailable(f"{url} answers with more than {_MOST_BYTES} bytes")
    return bytes(body)
