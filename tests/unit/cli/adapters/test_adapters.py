"""`llmserve adapters` as a user types it, on a router that is scripted."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
import pytest

from llmserve.cli import main
from llmserve.cli.adapters import page
from llmserve.cli.adapters.page import progress_of
from llmserve.core.adapters import AdapterReport, AdapterState, AdapterTier, NamedAdapter
from llmserve.core.errors import LLMServeError, NotFound, Unavailable
from llmserve.core.ids import AdapterDigest
from llmserve.rpc.adapter_calls import adapter_row
from llmserve.rpc.adapters import encode_adapter_report, encode_named
from llmserve.rpc.gen.llmserve.v1 import router_pb2, router_pb2_grpc
from llmserve.rpc.status import code_of, trailing_metadata

SQL = NamedAdapter("sql", AdapterDigest("3f" * 32), "tiny", "dir:/adapters/sql", 8, 4096)


def status_of(
    adapter: NamedAdapter = SQL, state: AdapterState = AdapterState.READY, **fields: Any
) -> router_pb2.AdapterStatus:
    there = AdapterReport(1, adapter.digest, tier=AdapterTier.DRAM, running=2, load_seconds=0.125)
    away = AdapterReport(1, error="Unavailable", message="the store is away")
    places = [
        router_pb2.AdapterPlace(worker_id=name, report=encode_adapter_report(report))
        for name, report in (("prefill-0", there), ("decode-0", there), ("decode-1", away))
    ]
    return router_pb2.AdapterStatus(adapter=encode_named(adapter), state=state, places=places, **fields)


class ScriptedRouter(router_pb2_grpc.RouterServicer):
    """error: what each call but the list is answered with. busy: a load is answered when it is set."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.adapters = [status_of(pinned=True, running_requests=4)]
        self.error: LLMServeError | None = None
        self.listed, self.busy = threading.Event(), False

    def LoadAdapter(self, request: Any, context: Any) -> router_pb2.LoadAdapterResponse:  # noqa: N802
        if self.busy:
            self.listed.clear()
            assert self.listed.wait(30)
        return router_pb2.LoadAdapterResponse(adapter=self._answer(request, context))

    def UnloadAdapter(self, request: Any, context: Any) -> router_pb2.UnloadAdapterResponse:  # noqa: N802
        return router_pb2.UnloadAdapterResponse(adapter=self._answer(request, context))

    def KeepAdapter(self, request: Any, context: Any) -> router_pb2.KeepAdapterResponse:  # noqa: N802
        return router_pb2.KeepAdapterResponse(adapter=self._answer(request, context))

    def ListAdapters(self, request: Any, context: Any) -> router_pb2.ListAdaptersResponse:  # noqa: N802
        self.listed.set()
        return router_pb2.ListAdaptersResponse(adapters=self.adapters)

    def _answer(self, request: Any, context: Any) -> router_pb2.AdapterStatus:
        self.asked.append(request)
        if self.error is not None:
            _fail(context, self.error)
        return status_of()


def _fail(context: Any, error: LLMServeError) -> NoReturn:
    context.set_trailing_metadata(trailing_metadata(error))
    context.abort(code_of(error), error.message)
    raise AssertionError("abort raises")


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[ScriptedRouter, str]]:
    router, server = ScriptedRouter(), grpc.server(ThreadPoolExecutor(4))
    router_pb2_grpc.add_RouterServicer_to_server(router, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield router, f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def router(served: tuple[ScriptedRouter, str]) -> ScriptedRouter:
    served[0].__init__()  # type: ignore[misc]
    return served[0]


@pytest.fixture
def run(router: ScriptedRouter, served: tuple[ScriptedRouter, str]) -> Any:
    return lambda *arguments: main(["adapters", *arguments, "--router", served[1]])


def test_ls(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls") == 0
    shown = capsys.readouterr().out
    for text in ("sql", "3f3f3f3f3f3f", "ready, pinned", "4.0 KiB", "2 dram, 1 source", "dir:/adapters/sql"):
        assert text in shown


def test_ls_for_programs(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["version"], row["state"], row["running_requests"]) == (
        "sql",
        "3f" * 32,
        "ready",
        4,
    )
    assert row["workers"][2] == {
        "worker": "decode-1",
        "tier": "source",
        "running_requests": 0,
        "load_seconds": None,
        "error": "the store is away",
    }


def test_ls_of_nothing(run: Any, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]) -> None:
    router.adapters = []
    assert run("ls") == 0
    assert "no adapter is loaded" in capsys.readouterr().out


def test_show(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "sql") == 0
    shown = capsys.readouterr().out
    for line in (
        "sql: ready, pinned, an adapter of tiny",
        f"version {'3f' * 32}",
        "source dir:/adapters/sql",
        "rank 8, 4.0 KiB",
        "4 requests have it",
        "prefill-0: dram, 2 requests, last loaded in 0.125 s",
        "decode-1: the store is away",
    ):
        assert line in shown
    assert run("show", "sql", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "sql"


def test_show_of_a_name_that_is_not_there(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "none") == 2
    assert "no adapter has the name none" in capsys.readouterr().err


def test_load(run: Any, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("load", "sql", "dir:/adapters/sql/", "--pin", "--tier", "device") == 0
    assert "sql is ready: version 3f3f3f3f3f3f" in capsys.readouterr().out
    (asked,) = router.asked
    device = router_pb2.ADAPTER_TIER_DEVICE
    assert (asked.name, asked.source, asked.pin, asked.prefetch) == ("sql", "dir:/adapters/sql", True, device)


def test_a_load_that_takes_its_time_shows_how_far_it_is(
    run: Any, router: ScriptedRouter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llmserve.cli.adapters.page._POLL_SECONDS", 0.01)
    router.busy = True
    assert run("load", "sql", "hub:org/sql", "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "sql"
    assert router.asked[0].prefetch == router_pb2.ADAPTER_TIER_UNSPECIFIED


def test_progress_in_words() -> None:
    fetching = status_of(state=AdapterState.FETCHING, error="worker decode-1: the store is away")
    assert progress_of(fetching) == (
        "sql: fetching, on the hosts of 2 workers; worker decode-1: the store is away"
    )


@pytest.mark.parametrize(("options", "waits"), [((), True), (("--no-wait",), False)])
def test_unload(
    run: Any,
    router: ScriptedRouter,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    waits: bool,
) -> None:
    assert run("unload", "sql", *options) == 0
    assert (router.asked[0].name, router.asked[0].wait) == ("sql", waits)
    assert ("no worker has it" in capsys.readouterr().out) is waits


def test_prefetch_pin_and_unpin(run: Any, router: ScriptedRouter) -> None:
    for arguments in (("prefetch",), ("prefetch", "--tier", "device"), ("pin",), ("unpin",)):
        assert run(arguments[0], "sql", *arguments[1:]) == 0
    asked = [(one.tier, one.pin if one.HasField("pin") else None, one.wait) for one in router.asked]
    dram, device = router_pb2.ADAPTER_TIER_DRAM, router_pb2.ADAPTER_TIER_DEVICE
    unspecified = router_pb2.ADAPTER_TIER_UNSPECIFIED
    assert asked == [
        (dram, None, True),
        (device, None, True),
        (unspecified, True, False),
        (unspecified, False, False),
    ]


@pytest.mark.parametrize(
    ("error", "code"), [(NotFound("no adapter has the name sql"), 2), (Unavailable("none leads"), 1)]
)
def test_what_the_router_refuses(
    run: Any,
    router: ScriptedRouter,
    capsys: pytest.CaptureFixture[str],
    error: LLMServeError,
    code: int,
) -> None:
    router.error = error
    for arguments in (("load", "sql", "dir:/a"), ("unload", "sql"), ("prefetch", "sql"), ("pin", "sql")):
        assert run(*arguments) == code
        assert error.message in capsys.readouterr().err


def test_a_source_without_sense_is_said_before_anybody_is_asked(
    run: Any, router: ScriptedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("load", "sql", "sql.safetensors") == 2
    assert "dir:/PATH" in capsys.readouterr().err
    assert not router.asked


@pytest.mark.parametrize(
    "action", ["ls", "show", "load", "unload", "prefetch", "pin", "unpin"], ids=lambda name: name
)
def test_every_action_teaches(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["adapters", action, "--help"])
    assert end.value.code == 0
    assert "--router" in capsys.readouterr().out


def test_a_version_that_nobody_knows_yet() -> None:
    row = adapter_row(
        router_pb2.AdapterStatus(
            adapter=encode_named(NamedAdapter("new", AdapterDigest(""), "tiny", "hub:org/new")),
            state=AdapterState.REGISTERED,
        )
    )
    assert (row["version"], row["rank"], row["size_bytes"], row["workers"]) == (None, None, None, [])
    assert page.version(row) == "-"
    assert "version not known yet" in "\n".join(page.adapter_lines([row]))
