"""An apiserver makes and drops models as the router tells."""

import asyncio
import json
from pathlib import Path

import pytest

from llmserve.apiserver.models.following import ModelFollowing
from llmserve.apiserver.options import ModelDirectory
from llmserve.config.schema import Manifest
from llmserve.config.wanted_models import AnsweringModels, ServedName
from llmserve.core.errors import StartFailed

MANIFEST = Manifest.model_validate(
    {
        "kind": "LLMServe",
        "models": {"primary": {"source": "hub:o/a", "name": "a"}},
        "scheduling": {"drain_timeout_seconds": 7.0},
    }
)
A = ServedName("a", '{"source":"hub:o/a","name":"a"}', declared=True, ready=True)


def served(name: str, *, ready: bool = False, source: str = "") -> ServedName:
    entry = json.dumps({"source": source or f"hub:o/{name}", "name": name})
    return ServedName(name, entry, f"/models/{name}", ready=ready)


class FakeRouter:
    def __init__(self) -> None:
        self.served: tuple[ServedName, ...] | None = None
        self.served_changed = asyncio.Event()
        self.answers: list[AnsweringModels] = []

    def answer_models(self, models: AnsweringModels) -> None:
        self.answers.append(models)


class Following:
    """An apiserver with the model of the manifest."""

    def __init__(self) -> None:
        self.names, self.log, self.wrong = ["a"], list[str](), set[str]()
        self.router = FakeRouter()
        self.following = ModelFollowing(
            MANIFEST,
            self.router,
            self.add,
            self.drop,
            {"a": Path("/models/a")},
        )
        self.task = asyncio.create_task(self.following.run())

    async def add(self, files: ModelDirectory, manifest: Manifest) -> None:
        if files.name in self.wrong:
            raise StartFailed("no tokenizer")
        self.log.append(f"add {files.name} from {files.directory}, {manifest.model.source}")
        self.names.append(files.name)

    async def drop(self, name: str, drain_seconds: float) -> None:
        self.log.append(f"drop {name} in {drain_seconds:g}")
        self.names.remove(name)

    async def tell(self, *models: ServedName) -> None:
        self.router.served = models
        self.router.served_changed.set()
        for _ in range(10):
            await asyncio.sleep(0)

    @property
    def answered(self) -> tuple[set[str], dict[str, str]]:
        last = self.router.answers[-1]
        return set(last.names), dict(last.failed)


@pytest.fixture
async def apiserver() -> Following:
    return Following()


async def test_it_says_what_it_takes_from_the_start(apiserver: Following) -> None:
    await asyncio.sleep(0)
    assert apiserver.answered == ({"a"}, {})


async def test_a_model_that_comes_is_made(apiserver: Following) -> None:
    await apiserver.tell(A, served("b"))
    assert apiserver.log == ["add b from /models/b, hub:o/b"]
    assert apiserver.answered == ({"a", "b"}, {})
    await apiserver.tell(A, served("b", ready=True))
    assert len(apiserver.log) == 1


async def test_in_a_swap_the_new_model_is_there_before_the_old_one_leaves(apiserver: Following) -> None:
    await apiserver.tell(served("b"))
    assert apiserver.log == ["add b from /models/b, hub:o/b", "drop a in 7"]
    assert apiserver.answered == ({"b"}, {})
    await apiserver.tell(A)
    assert apiserver.log[2:] == ["add a from /models/a, hub:o/a", "drop b in 7"]


async def test_what_cannot_be_made_is_told_and_not_tried_again(apiserver: Following) -> None:
    apiserver.wrong.add("b")
    await apiserver.tell(A, served("b"))
    assert apiserver.answered == ({"a"}, {"b": "no tokenizer"})
    apiserver.wrong.clear()
    await apiserver.tell(A, served("b", ready=True))
    assert apiserver.log == []
    await apiserver.tell(A)
    assert apiserver.answered[1] == {}
    await apiserver.tell(A, served("b"))
    assert apiserver.log == ["add b from /models/b, hub:o/b"], "somebody has loaded it anew"


async def test_the_last_model_stays(apiserver: Following, caplog: pytest.LogCaptureFixture) -> None:
    apiserver.wrong.add("b")
    await apiserver.tell(served("b"))
    assert apiserver.log == []
    assert "model a is the last one here, and stays" in caplog.text


async def test_another_entry_of_a_name_is_another_model(apiserver: Following) -> None:
    await apiserver.tell(A, served("b"))
    await apiserver.tell(A, served("b", source="hub:o/other"))
    assert apiserver.log[1:] == ["drop b in 7", "add b from /models/b, hub:o/other"]


async def test_a_model_without_a_directory_waits_for_it(apiserver: Following) -> None:
    await apiserver.tell(A, ServedName("b", '{"source":"hub:o/b","name":"b"}'))
    assert apiserver.log == []


async def test_only_what_is_ready_or_of_the_manifest_is_expected(apiserver: Following) -> None:
    assert apiserver.following.is_expected("a"), "nobody has told anything"
    await apiserver.tell(ServedName("a", "{}", declared=True), served("b"), served("c", ready=True))
    assert [apiserver.following.is_expected(name) for name in "abc"] == [True, False, True]
