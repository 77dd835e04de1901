"""What is known of the processes, with a supervisor and without."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from llmserve.apiserver.console.processes import ClusterFile, ProcessTable
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2
from llmserve.runner.board import ProcessState
from llmserve.runner.state import STATE_NAME, ClusterState
from tests.unit.apiserver.console.looks import table


def test_the_supervisor_s_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    file = ClusterFile(str(tmp_path))
    assert file.read() is None
    state = ClusterState("c", "mine", "m.yaml", 1, 2, 3.0, "starting", temp_dir="/t", roles=[{"name": "a"}])
    state.write(tmp_path)
    first = file.read()
    assert first is not None
    assert (first.name, first.stand, first.pid, first.started_at) == ("mine", "starting", 1, 3.0)
    assert (first.temp_dir, [role["name"] for role in first.roles]) == ("/t", ["a"])
    assert file.read() is first
    (tmp_path / STATE_NAME).write_text(json.dumps(asdict(state) | {"stand": "ready"}))
    os.utime(tmp_path / STATE_NAME, ns=(1, 1))
    again = file.read()
    assert again is not None
    assert again.stand == "ready"


def test_a_file_that_is_no_such_file_is_none(tmp_path: Path) -> None:
    for text in ("", "[]", "{}"):
        (tmp_path / STATE_NAME).write_text(text)
        assert ClusterFile(str(tmp_path)).read() is None
    assert ClusterFile(None).read() is None


def test_without_a_supervisor_there_are_the_workers_that_the_router_knows() -> None:
    info = common_pb2.WorkerInfo(
        worker_id="decode-7", role=common_pb2.WORKER_ROLE_DECODE, address="h:1", model="m"
    )
    status = router_pb2.GetClusterStatusResponse(
        workers=[router_pb2.WorkerStatus(info=info)], leads=True, leader="r:1"
    )
    shown = ProcessTable.of_workers("mine", "apiserver-x", status)
    known = [(role["name"], role["role"], role["listen"]) for role in shown.roles]
    assert known == [
        ("apiserver-x", "apiserver", ""),
        ("router", "router", "r:1"),
        ("decode-7", "decode", "h:1"),
    ]
    assert {role["stand"] for role in shown.roles} == {ProcessState.READY}
    nobody = ProcessTable.of_workers("mine", "apiserver-x", router_pb2.GetClusterStatusResponse())
    assert [role["name"] for role in nobody.roles] == ["apiserver-x"]


def test_words_are_those_of_the_supervisor() -> None:
    from llmserve.overview import snapshot

    assert (snapshot._READY, snapshot._DRAINED) == (ProcessState.READY, ProcessState.DRAINED)
    assert (
        table("a-0").roles[0].keys()
        <= ProcessTable.of_workers("", "a", router_pb2.GetClusterStatusResponse()).roles[0].keys()
    )
