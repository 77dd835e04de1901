"""What a batch may be of."""

import httpx
import pytest
from fastapi import FastAPI

from llmserve.apiserver.batches.routes import add_batches
from llmserve.apiserver.batches.service import BatchService
from llmserve.apiserver.http.scope import RequestScope, enter_scope
from llmserve.core.errors import InvalidRequest, NotFound
from tests.integration.apiserver.batches.conftest import Bench

EMBEDDINGS, CHAT = "/v1/embeddings", "/v1/chat/completions"


async def test_a_batch_is_of_what_any_model_serves_by_then(bench: Bench) -> None:
    app, served = FastAPI(), {CHAT}
    add_batches(app, BatchService(bench.storage, bench.parts, 1.0), served.__contains__)
    enter_scope(RequestScope())
    body = {"input_file_id": "file-x", "endpoint": EMBEDDINGS, "completion_window": "1h"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        with pytest.raises(InvalidRequest, match=f"must be one of {CHAT}, got '{EMBEDDINGS}'"):
            await http.post("/v1/batches", json=body)
        served.add(EMBEDDINGS)
        with pytest.raises(NotFound, match="file-x"):
            await http.post("/v1/batches", json=body)
