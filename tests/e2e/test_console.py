"""The console in front of the real model: where the time of an answer went, and an answer by a schema."""

import json
from itertools import pairwise

import pytest
from playwright.async_api import expect

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
        await page.get_by_role("button", name="Settings").click()
        await page.get_by_label("Temperature").fill("0")
        await page.get_by_label("Max tokens").fill("64")
        await page.get_by_label("JSON schema of the answer").fill(json.dumps(_SCHEMA))
        await page.get_by_role("button", name="Settings").click()
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
