"""The look at a batch's file before any of its lines runs."""

import json
from collections.abc import AsyncIterator

from llmserve.apiserver.batches.examine import examine

URL = "/v1/completions"


def _line(number: int, model: str = "m", url: str = URL) -> bytes:
    body = {"model": model, "prompt": "x"}
    return json.dumps({"custom_id": f"c{number}", "method": "POST", "url": url, "body": body}).encode()


class Texts:
    """The numbered lines of a file. read: how many of them were taken."""

    def __init__(self, *texts: bytes) -> None:
        self.texts, self.read = texts, 0

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        for number, text in enumerate(self.texts, 1):
            self.read += 1
            yield number, text


async def test_one_good_line_is_enough() -> None:
    file = await examine(Texts(b"no JSON", _line(2)), URL, 10)
    assert (file.lines, file.model, file.errors) == (2, "m", ())


async def test_lines_of_several_models_name_none() -> None:
    file = await examine(Texts(_line(1), _line(2, "other")), URL, 10)
    assert (file.lines, file.model) == (2, None)


async def test_each_line_says_why_none_can_run_up_to_twenty_of_them() -> None:
    file = await examine(Texts(*(_line(at, url="/v1/other") for at in range(30))), URL, 100)
    assert [error.line for error in file.errors] == list(range(1, 21))


async def test_an_empty_file_is_refused() -> None:
    assert [error.code for error in (await examine(Texts(), URL, 10)).errors] == ["empty_file"]


async def test_a_file_that_is_too_long_is_not_read_to_its_end() -> None:
    texts = Texts(*(_line(at) for at in range(9)))
    assert [error.code for error in (await examine(texts, URL, 3)).errors] == ["too_many_requests"]
    assert texts.read == 4
