"""From a url to a client of obstore. What it needs to get in, obstore takes from the environment."""

import os
from datetime import timedelta
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from llmserve.core.errors import StartFailed
from llmserve.kvstore.tiers.object.settings import ObjectSettings

_CONNECT_SECONDS = 3.0
_SCHEMES = "s3://, gs://, az:// or file://"


def connect(settings: ObjectSettings) -> ObjectStore:
    """Sends nothing yet. Errors: StartFailed, when the url or the environment makes no client."""
    try:
        return from_url(settings.url, **_options(settings))
    except (BaseError, ValueError, OSError) as error:
        raise StartFailed(
            f"object tier: {shown(settings.url)} cannot be used ({_said(error, settings.url)}); "
            f"it must be a url of {_SCHEMES}, with its credentials in the environment"
        ) from None  # obstore's own text holds the url as it is


def shown(url: str) -> str:
    """Without what might be secret in it."""
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.partition("?")[0].rpartition("@")[2]


def _options(settings: ObjectSettings) -> dict[str, Any]:
    scheme = settings.url.partition("://")[0]
    if scheme in ("file", "memory"):
        return {"mkdir": True} if scheme == "file" else {}
    return {"client_options": _client(settings), "retry_config": _NO_RETRIES, **_place(settings, scheme)}


_NO_RETRIES = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}


def _client(settings: ObjectSettings) -> dict[str, Any]:
    limits = settings.limits
    longest = max(limits.read.attempt_seconds, limits.write.attempt_seconds)
    plain = _endpoint(settings).startswith("http://")
    return {
        "allow_http": plain,
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "timeout": timedelta(seconds=longest),
    }


def _place(settings: ObjectSettings, scheme: str) -> dict[str, str]:
    """Endpoint and region for S3; the others have theirs in the url."""
    named = {"endpoint": settings.endpoint, "region": settings.region} if scheme.startswith("s3") else {}
    return {key: value for key, value in named.items() if value}


def _endpoint(settings: ObjectSettings) -> str:
    return settings.endpoint or os.environ.get("AWS_ENDPOINT_URL", "") or os.environ.get("AWS_ENDPOINT", "")


def _said(error: Exception, url: str) -> str:
    return str(error).partition("\n")[0].replace(url, shown(url))[:200]
