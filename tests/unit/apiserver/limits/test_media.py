"""Which URLs of a request may be fetched, wherever they stand in it."""

from typing import Any

import pytest

from llmserve.apiserver.limits.media import check_media, may_have_urls
from llmserve.core.errors import InvalidRequest

ALLOWED = {"media.example.com"}


def chat(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, part]}]}


def image(url: Any) -> dict[str, Any]:
    return chat({"type": "image_url", "image_url": {"url": url}})


@pytest.mark.parametrize(
    "fields",
    [
        image("http://169.254.169.254/latest/meta-data"),
        image("https://other.example.com/a.png"),
        chat({"image_url": "https://other.example.com/a.png"}),
        chat({"type": "input_image", "image_url": "http://localhost/a"}),
        chat({"type": "audio_url", "audio_url": {"url": "http://10.0.0.1/a"}}),
        chat({"type": "video_url", "video_url": {"url": "http://[::1]/a"}}),
        chat({"type": "input_file", "file_url": "http://10.0.0.1/a"}),
        chat({"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/a"}}),
        chat({"type": "tool_result", "content": [{"source": {"type": "url", "url": "http://10.0.0.1/a"}}]}),
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b"}]}]},
        # Only a part of a message can be a call of a tool, and not the whole body.
        {"type": "tool_use", "input": [{"content": [{"type": "input_image", "image_url": "http://a/b"}]}]},
        {"documents": [{"content": [{"type": "image_url", "image_url": {"url": "http://a/b"}}]}]},
        {"messages": [[{"role": "user", "content": [{"image_url": {"url": "http://a/b"}}]}]]},
        # What parsers read differently.
        image("http://media.example.com\\@10.0.0.1/"),
        image("http://media.example.com@10.0.0.1/"),
        image("http://10.0.0.1#@media.example.com/"),
        image("http://media.example.com:80@10.0.0.1/"),
        image("http://media.example.com /"),
        image("http://media.example.com\n.evil.com/"),
        image("http:media.example.com/a"),
        image("//media.example.com/a"),
        image("file:///etc/passwd"),
        image("ftp://media.example.com/a"),
        image("FILE:///etc/passwd"),
        image(""),
    ],
)
def test_urls_that_are_not_fetched(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_media(fields, ALLOWED)
    assert refused.value.field in ("image_url", "audio_url", "video_url", "file_url", "source")
    assert "10.0.0.1" not in refused.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "see http://10.0.0.1/"}]},
        image("data:image/png;base64,aaaa"),
        image("DATA:image/png;base64,aaaa"),
        image("https://media.example.com/a.png?size=1#x"),
        image("http://MEDIA.example.com:8080/a"),
        image("https://media.example.com"),
        image(None),
        chat({"type": "image_url", "image_url": None, "uuid": "1"}),
        chat({"type": "tool_use", "input": {"image_url": "http://10.0.0.1/"}}),
        {"tools": [{"input_schema": {"image_url": "http://10.0.0.1/"}}], "messages": []},
        {"messages": [{"role": "user", "content": "a", "source": "http://10.0.0.1/"}]},
    ],
)
def test_what_nobody_would_fetch_or_may(fields: dict[str, Any]) -> None:
    check_media(fields, ALLOWED)


def test_no_host_is_allowed_by_itself() -> None:
    with pytest.raises(InvalidRequest, match=r"security\.allowed_media_hosts"):
        check_media(image("https://media.example.com/a"), ())


@pytest.mark.parametrize(
    ("body", "may"),
    [(b'{"prompt": "a"}', False), (b'{"image_url": 1}', True), (b'{"image\\u005furl": 1}', True)],
)
def test_bodies_that_need_no_look(body: bytes, may: bool) -> None:
    assert may_have_urls(body) is may
