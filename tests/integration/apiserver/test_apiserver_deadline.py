"""The deadline of a request, all in all."""

from typing import Any

import httpx
import pytest

from tests.integration.apiserver.manifests import manifest_of


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return manifest_of(scheduling={"request_timeout_seconds": 0.2})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_takes_too_long_is_504(
    cluster: Any, http: httpx.AsyncClient, stream: bool
) -> None:
    cluster.decode.pause_at = 0
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 8, "seed": 1, "stream": stream}
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 504
    await cluster.decode.until(lambda: bool(cluster.decode.aborted))
    await cluster.prefill.until(lambda: bool(cluster.prefill.released))
