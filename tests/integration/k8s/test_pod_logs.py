"""`llmserve logs` in Kubernetes: the pods' logs by time, of a container's run before, and what comes."""

from collections.abc import Iterator

import pytest

from llmserve.cli.logs.pods import Container, read
from llmserve.core.errors import Unavailable
from llmserve.k8s.api import KubeApi
from tests.integration.k8s.conftest import Cli
from tests.support.kube_server import KubeServer


def at(second: int, text: str) -> str:
    return f"2026-01-02T10:00:{second:02}.123456789Z {text}"


@pytest.fixture
def up(cli: Cli, server: KubeServer) -> Cli:
    cli("up", "--apply")
    server.store.logs = {
        ("demo-decode-0", "llmserve"): [at(2, "d two"), at(4, "d four")],
        ("demo-decode-1", "llmserve"): [at(3, "e three")],
        ("demo-router-0", "llmserve"): [at(1, "r one")],
    }
    return cli


def shown(cli: Cli, *arguments: str) -> list[str]:
    said = cli("logs", *arguments)
    assert said.code == 0, said.err
    return [" ".join(line.split()) for line in said.out.splitlines()]


def test_all_pods_by_time(up: Cli) -> None:
    assert shown(up) == [
        "demo-router-0 | r one",
        "demo-decode-0 | d two",
        "demo-decode-1 | e three",
        "demo-decode-0 | d four",
    ]


def test_a_line_may_hold_other_ends_of_lines(up: Cli, server: KubeServer) -> None:
    server.store.logs["demo-decode-1", "llmserve"] = [at(3, '{"message": "a\u2028b"}')]
    (line,) = up("logs", "demo-decode-1").out.removesuffix("\n").split("\n")
    assert line.endswith('| {"message": "a\u2028b"}')


def test_of_a_role_of_a_pod_the_last_ones(up: Cli) -> None:
    assert shown(up, "decode", "--tail", "2") == ["demo-decode-1 | e three", "demo-decode-0 | d four"]
    assert shown(up, "demo-decode-1") == ["demo-decode-1 | e three"]
    assert shown(up, "--since", "2026-01-02T10:00:03+00:00") == [
        "demo-decode-1 | e three",
        "demo-decode-0 | d four",
    ]


def test_of_the_run_before_and_of_the_container_that_fetches_the_model(up: Cli, server: KubeServer) -> None:
    pod = server.store.get("Pod", "demo-decode-0")
    pod["status"]["containerStatuses"][0]["restartCount"] = 1
    server.store.previous_logs["demo-decode-0", "llmserve"] = [at(0, "d crashed")]
    fetcher = pod["spec"]["initContainers"][0]["name"]
    server.store.logs["demo-decode-0", fetcher] = [at(0, "fetching")]
    assert shown(up, "demo-decode-0") == [
        "demo-decode-0 | d crashed",
        f"demo-decode-0/{fetcher} | fetching",
        "demo-decode-0 | d two",
        "demo-decode-0 | d four",
    ]


def test_what_is_not_there_is_said(up: Cli) -> None:
    said = up("logs", "prefil")
    assert said.code == 2
    assert "no pod or role of 'demo' is called prefil; there are: demo-apiserver-0, demo" in said.err
    up("down")
    assert "'demo' has no pods in namespace 'prod'" in up("logs").err


def test_what_comes_is_followed_through_a_server_that_is_away(
    up: Cli, server: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = happenings(server)
    monkeypatch.setattr("llmserve.cli.logs.time.sleep", lambda seconds: next(rounds))
    said = up("logs", "decode", "--tail", "1", "--follow")
    assert said.code == 0
    assert [line.split("|")[1].strip() for line in said.out.splitlines()] == ["d four", "e five", "d six"]
    assert "does not answer" in said.err
    assert "trying again" in said.err


def happenings(server: KubeServer) -> Iterator[None]:
    """Between two looks."""
    log = server.store.logs["demo-decode-0", "llmserve"]
    server.store.logs["demo-decode-1", "llmserve"].append(at(5, "e five"))
    yield
    server.silent = True
    yield
    server.silent = False
    log.append(at(6, "d six"))
    yield
    raise KeyboardInterrupt


def followed(up: Cli, monkeypatch: pytest.MonkeyPatch, rounds: Iterator[None], *arguments: str) -> list[str]:
    monkeypatch.setattr("llmserve.cli.logs.time.sleep", lambda seconds: next(rounds))
    return [line.split("|")[1].strip() for line in shown(up, *arguments, "--follow")]


def test_followed_is_only_what_comes(up: Cli, server: KubeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a log that nothing is shown of, too."""

    def rounds() -> Iterator[None]:
        yield
        server.store.logs["demo-decode-0", "llmserve"].append(at(6, "d six"))
        server.store.logs["demo-router-0", "llmserve"].append(at(7, "r seven"))
        yield
        raise KeyboardInterrupt

    since = "2026-01-02T10:00:05+00:00"
    assert followed(up, monkeypatch, rounds(), "--tail", "0") == ["d six", "r seven"]
    for name in ("demo-decode-0", "demo-router-0"):
        server.store.logs[name, "llmserve"].pop()
    assert followed(up, monkeypatch, rounds(), "--since", since) == ["d six", "r seven"]


def test_lines_of_one_microsecond_are_followed_once_each(
    up: Cli, server: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = server.store.logs["demo-decode-0", "llmserve"]

    def rounds() -> Iterator[None]:
        for nanoseconds in (100, 900, 999):
            log.append(f"2026-01-02T10:00:09.999999{nanoseconds}Z d {nanoseconds}")
            yield
        raise KeyboardInterrupt

    assert followed(up, monkeypatch, rounds(), "demo-decode-0", "--tail", "0") == ["d 100", "d 900", "d 999"]


def test_lines_of_one_pod_outlast_the_failure_of_another(
    up: Cli, server: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(api: KubeApi, one: Container, since: float | None, count: int | None) -> Iterator[str]:
        if one.pod == "demo-decode-1":
            raise Unavailable("decode-1's node does not answer")
        return read(api, one, since, count)

    def rounds() -> Iterator[None]:
        server.store.logs["demo-decode-0", "llmserve"].append(at(6, "d six"))
        monkeypatch.setattr("llmserve.cli.logs.pods.read", fails)
        yield
        monkeypatch.setattr("llmserve.cli.logs.pods.read", read)
        yield
        raise KeyboardInterrupt

    assert followed(up, monkeypatch, rounds(), "decode", "--tail", "0") == ["d six"]
