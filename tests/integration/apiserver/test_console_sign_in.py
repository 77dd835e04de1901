"""Sign-in to the console at a real OpenID provider, in a real browser."""

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Page, Request, expect

from tests.integration.apiserver.manifests import manifest_of
from tests.support.browser import in_both_themes, open_browser
from tests.support.oidc_provider import OidcProvider, oidc_provider

__all__ = ["oidc_provider"]
pytestmark = pytest.mark.timeout(120)
_PATIENCE_MS = 30_000.0


@pytest.fixture(scope="session")
def manifest(oidc_provider: OidcProvider) -> dict[str, Any]:
    issuer = {
        "issuer": oidc_provider.issuer,
        "audience": ["llmserve"],
        "rules": [{"when": {"scope": "llm.use"}, "tenant_claim": "org"}],
        "console": {
            "client_id": "console",
            "scopes": ["llm.use"],
            "parameters": {"resource": "urn:llmserve"},
        },
    }
    return manifest_of(security={"api_keys": [{"tenant": "blue", "key": "blue-key"}], "oidc": [issuer]})


@pytest_asyncio.fixture
async def page(cluster: Any, oidc_provider: OidcProvider) -> AsyncIterator[Page]:
    """The page before anybody has signed in. Fails on what it logs as wrong."""
    oidc_provider.give_tokens()
    async with open_browser() as browser:
        opened, wrong = await browser.new_page(), []
        opened.on("pageerror", lambda error: wrong.append(f"{opened.url}: {error}"))
        opened.on(
            "console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None
        )
        opened.set_default_timeout(_PATIENCE_MS)
        # The provider's own pages ask for a font from elsewhere.
        await opened.route("**/*googleapis*/**", lambda route: route.abort())
        await opened.goto(f"{cluster.url}/ui#/requests")
        yield opened
        assert [one for one in wrong if oidc_provider.issuer not in one] == []


async def _begin(page: Page) -> None:
    await page.get_by_role("button", name="Sign in at 127.0.0.1").click()


async def _sign_in(page: Page, name: str = "ann") -> None:
    """At the provider, which shows its form unless it knows who asks."""
    await _begin(page)
    await page.locator("input[name=login]").fill(name)
    await page.locator("input[name=password]").fill("any")
    await page.get_by_role("button", name="Sign-in").click()
    await page.get_by_role("button", name="Continue").click()


async def _is_in(page: Page) -> None:
    await expect(page.get_by_role("link", name="Chat")).to_be_visible(timeout=_PATIENCE_MS)


async def _stored(page: Page) -> dict[str, Any]:
    """The tokens of the tab."""
    text = await page.evaluate("sessionStorage.getItem('llmserve.tokens')")
    return dict(json.loads(text or "{}"))


async def test_a_person_signs_in_stays_signed_in_and_leaves(cluster: Any, page: Page) -> None:
    await in_both_themes(page)
    asked: list[Request] = []
    page.on("request", lambda one: asked.append(one))
    await _sign_in(page)
    await _is_in(page)
    assert page.url == f"{cluster.url}/ui#/requests"
    await expect(page.get_by_text("red ·")).to_be_visible()
    (first,) = [one for one in asked if urlsplit(one.url).path == "/auth"]
    query = parse_qs(urlsplit(first.url).query)
    assert query["code_challenge_method"] == ["S256"]
    assert query["state"] != query["nonce"]
    await page.reload()
    await _is_in(page)
    assert await page.evaluate("JSON.stringify(localStorage)") == "{}"
    await page.get_by_role("button", name="Sign out").click()
    await page.get_by_role("button", name="Yes, sign me out").click()
    await expect(page.get_by_label("API key")).to_be_visible()
    assert await _stored(page) == {}
    await _begin(page)  # the provider knows nobody any more
    await expect(page.locator("input[name=login]")).to_be_visible()


async def test_tokens_are_renewed_before_they_expire(page: Page, oidc_provider: OidcProvider) -> None:
    oidc_provider.give_tokens(seconds=20)  # less than the 30 s in which the page asks for new ones
    await _sign_in(page)
    await _is_in(page)
    first = await _stored(page)
    await page.wait_for_function(
        "(first) => !sessionStorage['llmserve.tokens'].includes(first)", arg=first["access"]
    )
    await page.reload()
    await _is_in(page)
    assert (await _stored(page))["refresh"] != first["refresh"]


async def test_who_cannot_renew_signs_in_again(page: Page, oidc_provider: OidcProvider) -> None:
    oidc_provider.give_tokens(seconds=5, refresh=False)
    await _sign_in(page)
    await _is_in(page)
    await expect(page.get_by_role("alert")).to_contain_text("Your sign-in has expired.", timeout=_PATIENCE_MS)
    assert await _stored(page) == {}
    await _begin(page)  # the provider knows who it is, and asks only whether that is right
    await page.get_by_role("button", name="Continue").click()
    await _is_in(page)


async def test_a_sign_in_is_cancelled_and_a_key_is_used(page: Page) -> None:
    await _begin(page)
    await page.get_by_role("link", name="Cancel").click()
    await expect(page.get_by_role("alert")).to_contain_text("The sign-in was cancelled.")
    assert "state=" not in page.url
    await page.get_by_label("API key").fill("blue-key")
    await page.get_by_role("button", name="Sign in", exact=True).click()
    await _is_in(page)


async def test_who_may_not_come_in_can_be_somebody_else(page: Page) -> None:
    await _sign_in(page, "stranger")
    await expect(page.get_by_role("alert")).to_contain_text("names no tenant")
    await _sign_in(page, "ann")
    await _is_in(page)


async def test_the_answer_to_another_sign_in_is_refused(cluster: Any, page: Page) -> None:
    """Somebody else's code in this browser would sign it in as them."""
    await page.goto(f"{cluster.url}/ui?code=theirs&state=theirs")
    await expect(page.get_by_role("alert")).to_contain_text("This tab did not begin that sign-in.")
    assert "code=" not in page.url
    await _begin(page)
    await expect(page.locator("input[name=login]")).to_be_visible()
    await page.goto(f"{cluster.url}/ui?code=theirs&state=theirs")
    await expect(page.get_by_role("alert")).to_contain_text("This tab did not begin that sign-in.")
    assert await _stored(page) == {}
