"""Where the engines of one more model run."""

from itertools import count

from llmserve.config.plan_types import ProcessRole, ProcessSpec
from llmserve.config.schema import Manifest
from llmserve.runner.models.engines import MachineParts, plan_model

LIKE = ProcessSpec(
    ProcessRole.DECODE,
    "decode-0",
    "m",
    routers=("r:1",),
    kvmanagers=("k:1",),
    after=("router-0",),
    cores=(0, 1),
    gpus=(0,),
)


def plan(cores: tuple[int, ...], gpus: tuple[int, ...] = (), only: tuple[int, ...] = ()) -> list[ProcessSpec]:
    manifest = Manifest.model_validate(
        {
            "kind": "LLMServe",
            "models": [{"source": "hub:o/b", "name": "Big One", "disaggregated": False}],
            "deployment": {"replicas": {"decode": 2}, "local": {"cores": list(only)} if only else {}},
        }
    ).for_model("Big One")
    ports = count(2000)
    machine = MachineParts(cores, gpus, lambda: next(ports))
    return plan_model(manifest, machine, LIKE, [LIKE])


def test_they_have_names_of_their_model_and_the_cluster_s_addresses() -> None:
    planned = plan((0, 1, 2, 3))
    assert [one.name for one in planned] == ["big-one-aggregated-0", "big-one-aggregated-1"]
    assert {(one.routers, one.kvmanagers, one.after, one.model) for one in planned} == {
        (("r:1",), ("k:1",), ("router-0",), "Big One")
    }
    assert len({one.listen for one in planned}) == 2


def test_they_take_cores_that_are_free() -> None:
    assert [one.cores for one in plan((0, 1, 2, 3))] == [(2,), (3,)]


def test_they_share_cores_when_none_is_free() -> None:
    assert [one.cores for one in plan((0, 1))] == [(0,), (1,)]


def test_they_stay_on_the_cores_of_the_manifest() -> None:
    assert [one.cores for one in plan((0, 1, 2, 3, 4), only=(1, 2, 3))] == [(2,), (3,)]


def test_they_take_gpus_that_are_free_first() -> None:
    assert [one.gpus for one in plan((0, 1), gpus=(0, 1, 2))] == [(1,), (2,)]
    assert [one.gpus for one in plan((0, 1), gpus=(0, 1))] == [(1,), (0,)]
