"""A real browser (Debian's chromium), and what is looked at in its pages."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright

_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
)
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
THEMES = ("light", "dark")


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("chromium is not on the path: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, headless=True, args=[*_FLAGS])
        yield browser
        await browser.close()


@cache
def _axe() -> str:
    """axe-core 4.14.1, as npm has it."""
    return (Path(__file__).parent / "axe.min.js").read_text()


async def violations(page: Page) -> list[str]:
    """Returns what axe finds wrong with a page as it is shown now: the rule, and where."""
    await page.evaluate(_axe())
    found = await page.evaluate("axe.run().then((result) => result.violations)")
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]
    ]


async def in_both_themes(page: Page, name: str = "") -> None:
    """Checks a page as it is shown now. name: of its picture in docs/pictures, which is drawn anew when the
    variable LLMSERVE_PICTURES is set; empty: there is none."""
    for theme in THEMES:
        await page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # type: ignore[arg-type]
        found = await violations(page)
        assert found == [], f"{theme}: {found}"
        if name and draws_pictures():
            await page.screenshot(path=PICTURES / f"console-{name}-{theme}.png")


async def waterfall(page: Page) -> tuple[dict[str, float], float]:
    """Returns the seconds of each phase of the last waterfall, and the time of its request."""
    drawn = page.locator(".waterfall").last
    total = float(await drawn.get_attribute("data-total") or 0)
    parts = await drawn.locator("li").evaluate_all(
        "all => all.map((one) => [one.dataset.phase, Number(one.dataset.seconds)])"
    )
    return dict(parts), total


def draws_pictures() -> bool:
    return bool(os.environ.get("LLMSERVE_PICTURES"))
