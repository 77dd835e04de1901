"""From a url to a client of obstore. What it needs to get in, obstore takes from the environment."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from llmserve.core.errors import StartFailed

_CONNECT_SECONDS = 3.0
_SCHEMES = "s3://, gs://, az:// or file://"


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """url: such as `s3://bucket/prefix`. endpoint, region: of an S3 server that is not AWS. A request ends
    after longest_seconds."""

    url: str
    endpoint: str = ""
    region: str = ""
    longest_seconds: float = 60.0


def connect(address: BucketAddress) -> ObjectStore:
    """Sends nothing yet. The client does not retry: its caller does. Errors: StartFailed, when the url or the
    environment makes no client."""
    try:
        return from_url(address.url, **_options(address))
    except (BaseError, ValueError, OSError) as error:
        raise StartFailed(
            f"bucket {shown(address.url)} cannot be used ({_said(error, address.url)}); "
            f"it must be a url of {_SCHEMES}, with its credentials in the environment"
        ) from None  # obstore's own text holds the url as it is


def shown(url: str) -> str:
    """Without what might be secret in it."""
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.partition("?")[0].rpartition("@")[2]


def _options(address: BucketAddress) -> dict[str, Any]:
    scheme = address.url.partition("://")[0]
    if scheme in ("file", "memory"):
        return {"mkdir": True} if scheme == "file" else {}
    return {"client_options": _client(address), "retry_config": _NO_RETRIES, **_place(address, scheme)}


_NO_RETRIES = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}


def _client(address: BucketAddress) -> dict[str, Any]:
    return {
        "allow_http": _endpoint(address).startswith("http://"),
        "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
        "timeout": timedelta(seconds=address.longest_seconds),
    }


def _place(address: BucketAddress, scheme: str) -> dict[str, str]:
    """Endpoint and region for S3; the others have theirs in the url."""
    named = {"endpoint": address.endpoint, "region": address.region} if scheme.startswith("s3") else {}
    return {key: value for key, value in named.items() if value}


def _endpoint(address: BucketAddress) -> str:
    return address.endpoint or os.environ.get("AWS_ENDPOINT_URL", "") or os.environ.get("AWS_ENDPOINT", "")


def _said(error: Exception, url: str) -> str:
    return str(error).partition("\n")[0].replace(url, shown(url))[:200]
