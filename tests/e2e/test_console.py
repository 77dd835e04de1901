"""The console in front of the real model: where the time of an answer went, an answer by a schema, and what
people do in a conversation."""

import json
from itertools import pairwise

import pytest
from playwright.async_api import Page, expect

from bench.cluster import Cluster
from tests.support.browser import open_browser, waterfall

_PATIENCE_MS = 60_000.0
_SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


async def test_a_chat_whose_waterfall_adds_up(cluster: Cluster) -> None:
    async with open_browser() as browser:
        page = await browser.new_page()
        await page.goto(f"{cluster.url}/ui#/chat")
        schema = json.dumps(_SCHEMA)
        await _settings(page, {"Temperature": "0", "Max tokens": "64", "JSON schema of the answer": schema})
        await page.get_by_label("Message", exact=True).fill("Which colour has grass? Answer as JSON.")
        await page.keyboard.press("Enter")
        answer = page.get_by_role("article", name="Answer")
        await expect(answer.locator("li[data-phase=decode]")).to_be_visible(timeout=_PATIENCE_MS)
        assert json.loads(await answer.locator(".markdown").inner_text())["colour"] in ("red", "green")
        phases, total = await waterfall(page)
        request_id = await answer.locator(".waterfall .mono").last.inner_text()
        answered = await page.request.get(f"{cluster.url}/v1/requests/{request_id}/trace")
        trace = await answered.json()
    assert {"prefill", "hand-over", "decode"} <= phases.keys()
    assert sum(phases.values()) == pytest.approx(total, abs=1e-5)
    request, *spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert request["dur"] == pytest.approx(1e6 * total, abs=10)
    assert [span["name"] for span in spans] == list(phases)
    for one, following in pairwise(spans):
        assert one["ts"] + one["dur"] == pytest.approx(following["ts"], abs=0.5)


async def test_an_answer_is_stopped_asked_for_again_changed_and_refused(cluster: Cluster) -> None:
    async with open_browser() as browser:
        page = await browser.new_page()
        await page.goto(f"{cluster.url}/ui#/chat")
        answer = page.get_by_role("article", name="Answer")
        await _settings(page, {"Temperature": "0", "Max tokens": "1500"})
        await page.get_by_label("Message", exact=True).fill("Count from one to one thousand.")
        await page.keyboard.press("Enter")
        await expect(answer.locator(".markdown")).not_to_be_empty(timeout=_PATIENCE_MS)
        await page.get_by_role("button", name="Stop").click()
        await expect(answer).to_contain_text("stopped")

        await _settings(page, {"Max tokens": "12"})
        await answer.get_by_role("button", name="Regenerate").click()
        await expect(answer).to_contain_text("+ 12 tokens", timeout=_PATIENCE_MS)
        first = await answer.locator(".markdown").inner_text()
        await page.get_by_role("button", name="Edit").click()
        await page.get_by_label("The message, changed").fill("What is the capital of France?")
        await page.get_by_role("button", name="Send again").click()
        await expect(answer.locator(".markdown")).not_to_have_text(first, timeout=_PATIENCE_MS)

        await _settings(page, {"Max tokens": "1000000"})
        await answer.get_by_role("button", name="Regenerate").click()
        await expect(page.get_by_role("alert")).to_contain_text("1000000", timeout=_PATIENCE_MS)


async def _settings(page: Page, values: dict[str, str]) -> None:
    await page.get_by_role("button", name="Settings").click()
    for label, value in values.items():
        await page.get_by_label(label).fill(value)
    await page.get_by_role("button", name="Settings").click()
