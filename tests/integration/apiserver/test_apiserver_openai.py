"""OpenAI's client: what it reads, the errors it raises, and how answers of /v1/responses end."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from llmserve.core.errors import NoWorkerAvailable, QueueFull, StreamLost
from llmserve.core.request import Outcome

MODEL = "acme/tiny"
USER: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="session")
def model_name() -> str:
    return MODEL


@pytest_asyncio.fixture
async def client(cluster: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_a_model_whose_id_has_a_slash(client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    (listed,) = [model async for model in client.models.list()]
    one = await client.models.retrieve(MODEL)
    assert (one.id, one.object) == (listed.id, listed.object) == (MODEL, "model")
    plain = (await http.get(f"/v1/models/{MODEL}")).json()
    assert plain["max_model_len"] == 200
    with pytest.raises(openai.NotFoundError) as missing:
        await client.models.retrieve("acme/other")
    assert "acme/other" in missing.value.message
    assert missing.value.type == "NotFoundError"


PROBED: list[str] = [
    "/",
    "/v1",
    "/v1/models",
    f"/v1/models/{MODEL}",
    "/version",
    "/health",
    "/live",
    "/metrics",
]


async def test_what_clients_and_balancers_probe(http: httpx.AsyncClient, subtests: pytest.Subtests) -> None:
    for path in PROBED:
        with subtests.test(path=path):
            for variant in (path, path.rstrip("/") + "/"):
                answer, head = await http.get(variant), await http.head(variant)
                assert (answer.status_code, head.status_code) == (200, 200)
                assert head.content == b""
                assert head.headers["content-type"] == answer.headers["content-type"]


async def test_a_slash_at_the_end_of_a_path_is_no_redirect(http: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": USER, "max_tokens": 4}
    assert (await http.post("/v1/chat/completions/", json=body)).status_code == 200


async def test_a_web_page_in_this_machine_s_browser_is_no_admin(http: httpx.AsyncClient) -> None:
    """Without keys clients on this machine are admins. A page of anybody's may send a POST from there."""
    from_page = await http.post("/admin/reload", headers={"origin": "https://evil.example"})
    assert from_page.status_code == 403
    assert from_page.json()["error"]["type"] == "PermissionDeniedError"
    from_program = await http.post("/admin/reload")
    assert from_program.status_code == 400  # there is no file to reload
    assert "manifest" in from_program.json()["error"]["message"]


async def test_errors_are_those_that_the_client_knows(cluster: Any, client: openai.AsyncOpenAI) -> None:
    async def failure(**fields: Any) -> Any:
        with pytest.raises(openai.APIStatusError) as raised:
            await client.chat.completions.create(
                **{"model": MODEL, "max_tokens": 4, "messages": USER, **fields}
            )
        assert raised.value.request_id
        return raised.value

    wrong = await failure(max_tokens=0)
    assert isinstance(wrong, openai.BadRequestError)
    assert (wrong.type, wrong.code, wrong.param) == ("BadRequestError", "400", "max_tokens")
    assert isinstance(await failure(model="gpt-7"), openai.NotFoundError)
    huge = await failure(messages=[{"role": "user", "content": "x" * 200_000}])
    assert (huge.status_code, huge.code) == (413, "413")
    cluster.router.refuse_with = (Outcome.REJECTED, QueueFull("full", retry_after_seconds=3.0))
    assert isinstance(await failure(), openai.RateLimitError)
    cluster.router.refuse_with = (Outcome.REJECTED, NoWorkerAvailable("no worker"))
    away = await failure()
    assert isinstance(away, openai.InternalServerError)
    assert (away.type, away.code) == ("ServiceUnavailableError", "503")


NOT_THERE: list[tuple[str, str, int, str | None]] = [
    ("GET", "/v1/nonsense", 404, None),
    ("POST", "/v1/nonsense", 404, None),
    ("DELETE", "/v1/chat/completions", 405, "POST"),
    ("GET", "/v1/chat/completions", 405, "POST"),
    ("HEAD", "/v1/chat/completions", 405, "POST"),
    ("POST", "/v1/models", 405, "GET, HEAD"),
    ("OPTIONS", "/v1/models", 405, "GET, HEAD"),
    ("GET", "/admin/reload", 405, "POST"),
]


async def test_paths_and_methods_that_are_not_there(
    http: httpx.AsyncClient, subtests: pytest.Subtests
) -> None:
    for method, path, status, allowed in NOT_THERE:
        with subtests.test(method=method, path=path, status=status, allowed=allowed):
            response = await http.request(method, path)
            assert response.status_code == status
            assert response.headers.get("allow") == allowed
            assert response.headers["content-type"] == "application/json"
            if method != "HEAD":
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
                assert response.json()["error"]["code"] == status
                assert path in response.json()["error"]["message"]


@pytest.mark.parametrize("tokens", [4, 16])
async def test_a_cut_response_is_incomplete(client: openai.AsyncOpenAI, cluster: Any, tokens: int) -> None:
    cluster.decode.text = cluster.prefill.text = b"hello world\0"  # ends by itself after 6
    plain = await client.responses.create(model=MODEL, input="hello", max_output_tokens=tokens)
    stream = await client.responses.create(model=MODEL, input="hello", max_output_tokens=tokens, stream=True)
    events = [event async for event in stream]
    last: Any = events[-1]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert last.response.output_text == plain.output_text
    cut = tokens < 6
    assert last.type == ("response.incomplete" if cut else "response.completed")
    for response in (plain, last.response):
        assert response.status == ("incomplete" if cut else "completed")
        assert (response.incomplete_details and response.incomplete_details.reason) == (
            "max_output_tokens" if cut else None
        )


async def test_a_response_refused_before_it_begins_has_a_status(
    cluster: Any, client: openai.AsyncOpenAI
) -> None:
    cluster.router.refuse_with = (Outcome.REJECTED, QueueFull("full", retry_after_seconds=3.0))
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as raised:
            await client.responses.create(model=MODEL, input="hello", stream=stream)
        assert raised.value.response.headers["retry-after"] == "3"


async def test_a_response_that_fails_in_its_stream_says_so(cluster: Any, client: openai.AsyncOpenAI) -> None:
    cluster.decode.pause_at = 2
    stream = await client.responses.create(model=MODEL, input="hello", max_output_tokens=9, stream=True)
    seen: list[Any] = []

    async def read() -> None:
        async for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                cluster.decode.fail_with = StreamLost("the worker is gone")
                cluster.decode.go.set()

    await read()
    assert seen[-1].type == "response.failed"
    assert seen[-1].response.status == "failed"
    assert "the worker is gone" in seen[-1].response.error.message
