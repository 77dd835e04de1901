"""What a batch may be of, and files whose names are odd."""

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


async def test_a_file_whose_name_is_odd(bench: Bench) -> None:
    """The client chooses the charset of the form, and with it what the bytes of the name mean."""
    app = FastAPI()
    add_batches(app, BatchService(bench.storage, bench.parts, 1.0), lambda path: True)
    enter_scope(RequestScope())
    form = (
        b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x\r\ncontent-disposition: form-data; name="file"; filename="../a/+2AA-b"\r\n\r\n'
        b"hello\r\n--x--\r\n"
    )
    kind = {"content-type": "multipart/form-data; boundary=x; charset=utf-7"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        made = (await http.post("/v1/files", content=form, headers=kind)).json()
        found = await http.get(f"/v1/files/{made['id']}/content")
    assert made["filename"] == "../a/?b"
    assert found.text == "hello"
    assert found.headers["content-disposition"] == "attachment; filename*=UTF-8''..%2Fa%2F%3Fb"
