"""The chat of the console in a real browser, in front of workers that tests script."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, Page, expect

from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import QueueFull
from llmserve.core.ids import AdapterDigest
from llmserve.core.request import HandoverReport, Outcome
from tests.integration.apiserver.manifests import manifest_of
from tests.support.browser import in_both_themes, open_browser, waterfall

_PATIENCE_MS = 20_000.0  # of a busy machine
HOSTILE = (
    b"<img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script>"
    b"[a](javascript:document.title='hit') "
)


@pytest.fixture(scope="session")
def manifest(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Tests may have another engine."""
    keys = [{"tenant": "red", "key": "red-key"}, {"tenant": "ops", "key": "ops-key", "admin": True}]
    return manifest_of(
        engine=getattr(request, "param", {"tool_call_parser": "hermes"}), security={"api_keys": keys}
    )


@pytest_asyncio.fixture
async def context() -> AsyncIterator[BrowserContext]:
    async with open_browser() as browser:
        yield await browser.new_context()


@pytest_asyncio.fixture
async def page(cluster: Any, context: BrowserContext) -> AsyncIterator[Page]:
    """The chat of a tenant who is signed in; answers have 40 tokens. Fails on what the page logs as wrong."""
    opened, wrong = await context.new_page(), []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
    await _sign_in(opened, cluster.url, "red-key")
    await opened.get_by_role("button", name="Settings").click()
    await opened.get_by_label("Max tokens").fill("40")
    await opened.get_by_role("button", name="Settings").click()
    yield opened
    assert wrong == []


async def _sign_in(page: Page, url: str, key: str) -> None:
    await page.goto(f"{url}/ui")
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("button", name="Sign in").click()


async def _ask(page: Page, text: str = "hello") -> None:
    await page.get_by_label("Message", exact=True).fill(text)
    await page.keyboard.press("Enter")


async def test_an_answer_and_where_its_time_went(cluster: Any, page: Page) -> None:
    cluster.decode.handover = HandoverReport("shm", 2**20, 0.001)
    cluster.decode.cached_tokens = cluster.prefill.cached_tokens = 4
    await _ask(page)
    answer = page.get_by_role("article", name="Answer")
    await expect(answer).to_contain_text("brown fox jumps")
    await expect(answer).to_contain_text("+ 40 tokens")
    await expect(answer.locator("li")).to_have_count(6)
    phases, total = await waterfall(page)
    assert list(phases) == ["prepare", "queue", "prefill", "hand-over", "decode", "finish"]
    assert sum(phases.values()) == pytest.approx(total, abs=1e-5)
    await expect(answer).to_contain_text("pull over shm")
    await answer.get_by_text("Why here?").click()
    await expect(answer).to_contain_text("prefill-0 → decode-0")
    await in_both_themes(page)


async def test_an_answer_is_stopped_and_asked_for_again(cluster: Any, page: Page) -> None:
    cluster.decode.pause_at = 3
    await _ask(page)
    await cluster.decode.until(lambda: cluster.decode.running)
    await page.get_by_role("button", name="Stop").click()
    await cluster.decode.until(lambda: cluster.decode.aborted)
    answer = page.get_by_role("article", name="Answer")
    await expect(answer).to_contain_text("stopped")
    cluster.decode.pause_at = None
    await answer.get_by_role("button", name="Regenerate").click()
    await expect(answer).to_contain_text("+ 40 tokens")
    assert await answer.count() == 1


async def test_a_message_is_changed_and_sent_again(cluster: Any, page: Page) -> None:
    await _ask(page, "first words")
    await expect(page.get_by_role("article", name="Answer")).to_contain_text("+ 40 tokens")
    await page.get_by_role("button", name="Edit").click()
    await page.get_by_label("The message, changed").fill("second words")
    await page.get_by_role("button", name="Send again").click()
    await expect(page.get_by_role("article", name="Answer")).to_contain_text("+ 40 tokens")
    assert await page.locator(".said").all_inner_texts() == ["second words"]
    assert cluster.router.admits[-1].prompt_tokens == len("second words")


async def test_an_error_is_said_in_its_words(cluster: Any, page: Page) -> None:
    cluster.router.refuse_with = (Outcome.REJECTED, QueueFull("the queue is full", retry_after_seconds=3.0))
    await _ask(page)
    await expect(page.get_by_role("alert")).to_contain_text("the queue is full")
    await expect(page.locator(".waterfall li[data-phase=queue]")).to_be_visible()
    cluster.router.refuse_with = None
    await page.get_by_role("button", name="Regenerate").click()
    await expect(page.get_by_role("article", name="Answer")).to_contain_text("+ 40 tokens")


async def test_what_a_model_writes_is_only_shown(cluster: Any, page: Page) -> None:
    cluster.prefill.text = cluster.decode.text = HOSTILE
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Max tokens").fill("190")
    await _ask(page)
    answer = page.get_by_role("article", name="Answer")
    await expect(answer).to_contain_text("+ 190 tokens")
    await expect(answer).to_contain_text("<script>")
    assert await answer.locator(".markdown :is(img, script, iframe)").count() == 0
    assert await answer.locator("a[href^='javascript' i]").count() == 0
    assert await page.title() == "Chat · LLMServe"


def _answers(cluster: Any, message: str, answer: str) -> None:
    """The model answers this message, the first of a conversation, with these words."""
    text = bytes(len(message)) + answer.encode() + b"\0"
    cluster.prefill.text = cluster.decode.text = text


async def test_a_tool_call_is_a_card_and_its_result_goes_back(cluster: Any, page: Page) -> None:
    call = {"name": "weather", "arguments": {"city": "<b>Oslo</b>"}}
    _answers(cluster, "Is it cold?", f"<tool_call>\n{json.dumps(call)}\n</tool_call>")
    tool = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Max tokens").fill("150")
    await page.get_by_label("Tools, as a JSON list").fill(
        json.dumps([{"type": "function", "function": tool}])
    )
    await page.get_by_role("button", name="Settings").click()
    await _ask(page, "Is it cold?")
    card = page.get_by_role("region", name="Tool call weather")
    await expect(card.locator("pre")).to_have_text('{\n  "city": "<b>Oslo</b>"\n}', timeout=_PATIENCE_MS)
    assert "tool_call" not in await page.get_by_role("article", name="Answer").inner_text()
    await in_both_themes(page)
    _answers(cluster, "", "It is minus ten. ")
    await card.get_by_label("Its result").fill("-10")
    await card.get_by_role("button", name="Send result").click()
    await expect(card).to_contain_text("-10")
    second = page.get_by_role("article", name="Answer").nth(1)
    await expect(second).to_contain_text("tokens/s", timeout=_PATIENCE_MS)
    assert cluster.router.admits[-1].prompt_tokens > cluster.router.admits[0].prompt_tokens


@pytest.mark.parametrize("manifest", [{"reasoning_parser": "granite"}], indirect=True)
async def test_reasoning_is_folded_away(cluster: Any, page: Page) -> None:
    _answers(cluster, "Why?", "Here is my thought process: <i>Light</i> scatters. Here is my response: Blue.")
    cluster.decode.pause_at = 45  # in the middle of its thoughts
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Max tokens").fill("150")
    await page.get_by_role("button", name="Settings").click()
    await _ask(page, "Why?")
    answer = page.get_by_role("article", name="Answer")
    await expect(answer.get_by_text("Thinking…")).to_be_visible(timeout=_PATIENCE_MS)
    cluster.decode.go.set()
    await expect(answer.locator("> .markdown")).to_have_text("Blue.", timeout=_PATIENCE_MS)
    thoughts = answer.get_by_text("<i>Light</i> scatters.")
    await expect(thoughts).to_be_hidden()
    await answer.get_by_text("Reasoning", exact=True).click()
    await expect(thoughts).to_be_visible()
    await in_both_themes(page)


async def _run(*command: str) -> str:
    """What a command writes. Its environment has the key of the test's tenant."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, "LLMSERVE_KEY": "red-key"}
    )
    written, _ = await process.communicate()
    assert process.returncode == 0
    return written.decode()


def _what_was_asked(request: Any) -> tuple[list[int], dict[str, Any]]:
    params = msgspec.msgpack.decode(request.sampling_params)
    return list(request.prompt_token_ids), {key: params[key] for key in params if key != "output_kind"}


async def test_what_is_copied_asks_the_same(cluster: Any, page: Page, context: BrowserContext) -> None:
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    tool = {"name": "f", "strict": False, "parameters": {"type": "object", "properties": {}, "default": None}}
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("System prompt").fill('It\'s "odd" \\n')
    await page.get_by_label("Temperature").fill("0.5")
    await page.get_by_label("Top-p").fill("0.9")
    await page.get_by_label("Seed").fill("7")
    await page.get_by_label("Stop").fill("'$HOME'\n\\")
    await page.get_by_label("Tools, as a JSON list").fill(
        json.dumps([{"type": "function", "function": tool}])
    )
    await page.get_by_role("button", name="Settings").click()
    await _ask(page, "l'été `id` 🦊 {}")
    answer = page.get_by_role("article", name="Answer")
    await expect(answer).to_contain_text("+ 40 tokens")
    text = await answer.locator(".markdown").inner_text()
    for name, shell in (("curl", ("bash", "-c")), ("Python", (sys.executable, "-c"))):
        await answer.get_by_role("button", name=name).click()
        await expect(answer.get_by_role("status")).to_have_text(f"{name} copied")
        copied = await page.evaluate("navigator.clipboard.readText()")
        assert "red-key" not in copied
        written = await _run(*shell, copied)
        said = json.loads(written)["choices"][0]["message"]["content"] if name == "curl" else written
        assert said.strip() == text.strip()
    asked = [_what_was_asked(request) for request in cluster.decode.seen.values()]
    assert len(asked) == 3
    assert asked[1:] == asked[:1] * 2


async def test_an_adapter_is_chosen(cluster: Any, page: Page) -> None:
    digest = AdapterDigest("a" * 64)
    await cluster.named(NamedAdapter("sql", digest, "tiny"))
    await page.reload()
    await page.get_by_label("Model").select_option("sql")
    await _ask(page)
    await expect(page.get_by_role("article", name="Answer")).to_contain_text(
        "+ 40 tokens", timeout=_PATIENCE_MS
    )
    assert [admit.adapter for admit in cluster.router.admits] == [digest]


async def test_two_tabs_share_conversations_and_neither_loses_any(
    cluster: Any, page: Page, context: BrowserContext
) -> None:
    other = await context.new_page()
    await _sign_in(other, cluster.url, "red-key")
    await _ask(page, "of the first tab")
    await expect(other.get_by_role("article", name="Answer")).to_contain_text("+ 40 tokens")
    await other.get_by_role("button", name="New").click()
    await _ask(other, "of the second tab")
    for tab in (page, other):
        for title in ("of the first tab", "of the second tab"):
            await expect(tab.get_by_role("button", name=title, exact=True)).to_be_visible()
    assert await page.locator(".said").all_inner_texts() == ["of the first tab"]


async def test_only_a_known_key_gets_in_and_none_is_kept(cluster: Any, context: BrowserContext) -> None:
    page = await context.new_page()
    await _sign_in(page, cluster.url, "wrong")
    await expect(page.get_by_role("alert")).to_contain_text("the API key is not known")
    await in_both_themes(page)
    await page.get_by_label("API key").fill("red-key")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("link", name="Chat")).to_be_visible()
    await page.reload()
    await expect(page.get_by_role("link", name="Chat")).to_be_visible()
    other = await context.new_page()
    await other.goto(f"{cluster.url}/ui")
    await expect(other.get_by_label("API key")).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    await page.reload()
    await expect(page.get_by_label("API key")).to_be_visible()
    assert "red-key" not in await page.evaluate("JSON.stringify([localStorage, sessionStorage])")


@pytest.mark.parametrize(
    ("key", "scopes"), [("red-key", ["inference", "read"]), ("ops-key", ["inference", "read", "admin"])]
)
async def test_a_caller_is_told_what_its_key_allows(
    cluster: Any, http: httpx.AsyncClient, key: str, scopes: list[str]
) -> None:
    answer = await http.get("/admin/v1/caller", headers={"authorization": f"Bearer {key}"})
    assert answer.json()["scopes"] == scopes
    assert answer.json()["keys"] is True
    assert (await http.get("/admin/v1/caller")).status_code == 401
