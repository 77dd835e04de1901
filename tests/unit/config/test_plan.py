"""The plan: which processes, in which order, on which cores, with which environment."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llmserve.config.plan import LocalPlan, ProcessRole, ProcessSpec, plan_local
from llmserve.config.schema import Manifest
from llmserve.core.errors import ManifestError, StartFailed


def manifest(**sections: Any) -> Manifest:
    return Manifest.model_validate(
        {"kind": "LLMServe", "models": {"primary": {"source": "hub:org/name"}}, **sections}
    )


def ports(first: int = 5000) -> Callable[[], int]:
    return itertools.count(first).__next__


def plan(cores: Sequence[int] = (0, 1), gpus: Sequence[int] = (), **sections: Any) -> LocalPlan:
    return plan_local(manifest(**sections), cores, ports(), gpus)


def named(made: LocalPlan, name: str) -> ProcessSpec:
    return next(process for process in made.processes if process.name == name)


def workers(made: LocalPlan) -> list[ProcessSpec]:
    return [process for process in made.processes if process.role.is_worker]


def test_the_default_is_one_of_each_role_in_start_order() -> None:
    made = plan()
    assert [process.name for process in made.processes] == [
        "kvmanager-0",
        "router-0",
        "prefill-0",
        "decode-0",
        "apiserver-0",
    ]
    assert made.base_urls == ("http://127.0.0.1:8000",)
    assert made.notes == ()


def test_what_a_process_waits_for_is_started_before_it() -> None:
    for single_process in (False, True):
        started: set[str] = set()
        for process in plan(deployment={"local": {"single_process": single_process}}).processes:
            assert started.issuperset(process.after)
            started.add(process.name)


def test_processes_know_the_addresses_of_the_others() -> None:
    made = plan()
    router, kvmanager = named(made, "router-0").listen, named(made, "kvmanager-0").listen
    for worker in workers(made):
        assert (worker.routers, worker.kvmanagers) == ((router,), (kvmanager,))
    assert named(made, "apiserver-0").routers == (router,)


def test_no_address_is_given_twice() -> None:
    made = plan(deployment={"replicas": {"prefill": 3, "decode": 4, "apiserver": 3}})
    given = [f"127.0.0.1:{process.metrics_port}" for process in made.processes]
    for process in made.processes:
        given += [address for address in (process.listen, process.direct) if address]
    given += made.base_urls
    assert len(given) == len(set(given))


def test_a_port_of_the_api_is_not_given_to_a_role() -> None:
    made = plan_local(manifest(), (0, 1), ports(first=7999))
    ours = [process.listen for process in made.processes]
    assert "127.0.0.1:8000" not in ours
    assert named(made, "apiserver-0").http == "127.0.0.1:8000"


def test_without_free_ports_it_says_so() -> None:
    with pytest.raises(StartFailed, match="no free port"):
        plan_local(manifest(), (0,), lambda: 5000)


_DIRS = {"name": "model"}


def test_arguments_of_a_worker_and_of_the_apiserver() -> None:
    made = plan()
    decode = named(made, "decode-0")
    assert decode.module == "llmserve.workers"
    assert decode.arguments("m.yaml", "run", _DIRS) == [
        *("--manifest", "m.yaml", "--name", "decode-0", "--run-dir", "run"),
        *("--metrics-port", str(decode.metrics_port), "--listen", str(decode.listen)),
        *("--router", decode.routers[0], "--kvmanager", decode.kvmanagers[0]),
        *("--model", "name", "--model-dir", "model", "--role", "decode"),
    ]
    apiserver = named(made, "apiserver-0").arguments("m.yaml", "run", _DIRS)
    assert "--listen" not in apiserver
    assert apiserver[apiserver.index("--http") + 1] == "127.0.0.1:8000"
    assert "--model-dir" in apiserver
    assert "--model-dir" not in named(made, "router-0").arguments("m.yaml", "run", _DIRS)
    assert "--model-dir" not in decode.arguments("m.yaml", "run")


def test_each_engine_gets_its_own_cores() -> None:
    made = plan(cores=(0, 1, 2, 3, 4), deployment={"replicas": {"prefill": 1, "decode": 1}})
    prefill, decode = named(made, "prefill-0"), named(made, "decode-0")
    assert (prefill.cores, decode.cores) == ((0, 1, 2), (3, 4))
    assert prefill.env["VLLM_CPU_OMP_THREADS_BIND"] == "0-2"
    assert decode.env["VLLM_CPU_OMP_THREADS_BIND"] == "3-4"
    assert named(made, "router-0").cores == ()


def test_more_engines_than_cores_share_them_and_are_told() -> None:
    made = plan(cores=(0, 1), deployment={"replicas": {"decode": 2}})
    assert [worker.cores for worker in workers(made)] == [(0,), (1,), (0,)]
    assert made.notes == ("3 engines share 2 cores: expect slow tokens.",)
    assert plan(cores=(0,)).notes == ("2 engines share 1 core: expect slow tokens.",)


def test_the_manifest_chooses_cores() -> None:
    local = {"local": {"cores": [2, 3]}}
    assert [worker.cores for worker in workers(plan(cores=range(4), deployment=local))] == [(2,), (3,)]
    with pytest.raises(ManifestError, match=r"core 3 is not available here \(there are 0-2\)"):
        plan(cores=range(3), deployment=local)


def test_ranks_of_an_engine_divide_its_cores() -> None:
    made = plan(cores=range(8), engine={"device": "cpu", "tensor_parallel": 2})
    assert named(made, "prefill-0").env["VLLM_CPU_OMP_THREADS_BIND"] == "0-1|2-3"


def test_a_worker_on_cpus_begins_with_the_threads_of_its_engine() -> None:
    decode = named(plan(cores=(0, 1, 2, 3, 4)), "decode-0")
    assert (decode.env["OMP_NUM_THREADS"], decode.env["GOMP_CPU_AFFINITY"]) == ("2", "3 4")
    assert decode.env["THP_MEM_ALLOC_ENABLE"] == "1"  # torch reads it before the engine is forked


@pytest.mark.parametrize("engine", [{"tensor_parallel": 2}, {"enforce_eager": False}])
def test_a_worker_whose_engine_does_not_compute_in_a_fork_begins_with_one_thread(
    engine: dict[str, Any],
) -> None:
    env = named(plan(cores=range(8), engine={"device": "cpu", **engine}), "decode-0").env
    assert env["OMP_NUM_THREADS"] == "1"
    assert "GOMP_CPU_AFFINITY" not in env


def test_the_cpu_environment() -> None:
    env = named(plan(kv_cache={"memory_gb": 2}), "decode-0").env
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert env["VLLM_NO_USAGE_STATS"] == "1"
    for process in plan().processes:
        assert "PYTHONHASHSEED" not in process.env


def test_a_fraction_of_a_gib_is_not_rounded_into_the_environment() -> None:
    env = named(plan(kv_cache={"memory_gb": 0.5}), "decode-0").env
    assert "VLLM_CPU_KVCACHE_SPACE" not in env


def test_gpus_are_dealt_to_engines() -> None:
    made = plan(gpus=range(4), engine={"device": "cuda", "tensor_parallel": 2})
    assert [worker.gpus for worker in workers(made)] == [(0, 1), (2, 3)]
    assert named(made, "decode-0").env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert named(made, "decode-0").cores == ()
    assert "VLLM_CPU_OMP_THREADS_BIND" not in named(made, "decode-0").env


def test_auto_takes_gpus_where_there_are_any() -> None:
    assert named(plan(gpus=(0, 1)), "decode-0").gpus == (1,)
    assert named(plan(gpus=(0, 1), engine={"device": "cpu"}), "decode-0").gpus == ()


def test_engines_share_a_gpu_and_are_told() -> None:
    made = plan(gpus=(0,))
    assert [worker.gpus for worker in workers(made)] == [(0,), (0,)]
    assert made.notes == ("2 engines share 1 GPU: kv_cache.memory_gb must fit several times.",)


def test_an_engine_larger_than_the_machine_is_refused() -> None:
    with pytest.raises(ManifestError, match="tensor_parallel: needs 4 GPUs, and there are 2"):
        plan(gpus=(0, 1), engine={"tensor_parallel": 4})


def test_aggregated_engines() -> None:
    made = plan(deployment={"disaggregated": False, "replicas": {"decode": 2}})
    assert [worker.name for worker in workers(made)] == ["aggregated-0", "aggregated-1"]
    assert workers(made)[0].args == ("--role", "aggregated")


def test_single_process_is_one_control_process() -> None:
    made = plan(deployment={"local": {"single_process": True}})
    assert [process.name for process in made.processes] == ["control-0", "prefill-0", "decode-0"]
    control = made.processes[0]
    assert (control.role, control.module) == (ProcessRole.CONTROL, "llmserve.control")
    assert control.loads_model
    assert workers(made)[0].routers == control.routers
    assert workers(made)[0].kvmanagers == control.kvmanagers
    assert workers(made)[0].after == ("control-0",)


def test_several_kvmanagers_are_known_to_all_workers_in_order() -> None:
    made = plan(deployment={"replicas": {"kvmanager": 3}})
    managers = [process for process in made.processes if process.role is ProcessRole.KVMANAGER]
    assert [process.name for process in managers] == ["kvmanager-0", "kvmanager-1", "kvmanager-2"]
    listen = [str(process.listen) for process in managers]
    assert len(set(listen)) == 3
    for worker in workers(made):
        given = worker.arguments("m.yaml", "run")
        assert given[given.index("--kvmanager") + 1] == ",".join(listen)
        assert set(worker.after) == {"router-0", *(process.name for process in managers)}


def test_several_apiservers_share_one_port_and_can_be_asked_apart() -> None:
    made = plan(deployment={"replicas": {"apiserver": 3}, "local": {"port": 9000, "host": "0.0.0.0"}})
    apiservers = [process for process in made.processes if process.role is ProcessRole.APISERVER]
    assert made.base_urls == ("http://127.0.0.1:9000",)
    assert {process.http for process in apiservers} == {"0.0.0.0:9000"}
    apart = [str(process.direct) for process in apiservers]
    assert len(set(apart)) == 3
    for process, direct in zip(apiservers, apart, strict=True):
        assert direct.startswith("127.0.0.1:")
        given = process.arguments("m.yaml", "run")
        assert given[given.index("--http") + 1] == direct


def test_several_apiservers_have_consecutive_ports_when_asked_for() -> None:
    local = {"port": 9000, "separate_ports": True}
    made = plan(deployment={"replicas": {"apiserver": 2}, "local": local})
    assert made.base_urls == ("http://127.0.0.1:9000", "http://127.0.0.1:9001")
    assert all(process.direct is None for process in made.processes)


def test_a_single_apiserver_has_its_port_to_itself() -> None:
    assert named(plan(), "apiserver-0").direct is None


def test_port_zero_is_a_free_one() -> None:
    made = plan(deployment={"local": {"port": 0}})
    assert named(made, "apiserver-0").http == "127.0.0.1:5000"


@pytest.mark.parametrize(
    ("host", "http", "url"),
    [
        ("0.0.0.0", "0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("::", "[::]:8000", "http://127.0.0.1:8000"),
        ("::1", "[::1]:8000", "http://[::1]:8000"),
        ("localhost", "localhost:8000", "http://localhost:8000"),
    ],
)
def test_where_the_api_listens_and_clients_connect(host: str, http: str, url: str) -> None:
    made = plan(deployment={"local": {"host": host}})
    assert named(made, "apiserver-0").http == http
    assert made.base_urls == (url,)
    assert all(str(process.listen).startswith("127.0.0.1:") for process in workers(made))


def test_an_open_api_is_noted() -> None:
    open_to_all = {"local": {"host": "0.0.0.0"}}
    assert "open to the network" in plan(deployment=open_to_all).notes[0]
    keys = {"api_keys": [{"tenant": "a", "key": "k"}]}
    assert plan(deployment=open_to_all, security=keys).notes == ()


def test_metrics_can_be_off() -> None:
    made = plan(observability={"metrics": False, "log_level": "debug"})
    assert {process.metrics_port for process in made.processes} == {0}
    assert {process.env["LLMSERVE_LOG_LEVEL"] for process in made.processes} == {"debug"}


def test_simulated_engines_need_no_cores_and_unused_knobs_are_noted() -> None:
    made = plan(engine={"kind": "sim", "dtype": "float16"}, kv_cache={"memory_gb": 2})
    assert workers(made)[0].cores == ()
    assert "VLLM_CPU_KVCACHE_SPACE" not in workers(made)[0].env
    assert made.notes == (
        "engine.dtype has no effect on the simulated engine.",
        "kv_cache.memory_gb has no effect on the simulated engine.",
    )
    unused = plan(engine={"sim": {"blocks": 5}})
    assert unused.notes == ("engine.sim is set, but engine.kind is vllm: it has no effect.",)


def test_the_table() -> None:
    rows = plan(cores=range(4)).describe_rows()
    assert rows[2] == (
        "prefill",
        "prefill-0",
        "127.0.0.1:5004",
        "0-1",
        "computes prompts, hands their KV over",
    )
    assert rows[4][2:4] == ("127.0.0.1:8000", "any")
    assert plan(gpus=(0, 1)).describe_rows()[3].cores == "gpu 1"


_LARGE = {"source": "hub:a/large", "engine": {"tensor_parallel": 2}}
_SMALL = {
    "source": "hub:a/Small.v2",
    "disaggregated": False,
    "replicas": {"decode": 2},
    "engine": {"env": [{"name": "MINE", "value": "1"}]},
    "kv_cache": {"memory_gb": 2.0},
}


def test_engines_of_several_models_have_the_model_in_their_names() -> None:
    made = plan(models=[_LARGE, _SMALL])
    assert [(one.name, one.model, one.role) for one in workers(made)] == [
        ("large-prefill-0", "large", ProcessRole.PREFILL),
        ("large-decode-0", "large", ProcessRole.DECODE),
        ("small-v2-aggregated-0", "Small.v2", ProcessRole.AGGREGATED),
        ("small-v2-aggregated-1", "Small.v2", ProcessRole.AGGREGATED),
    ]
    assert len({one.listen for one in made.processes if one.listen}) == 6
    assert [one.name for one in made.processes if not one.role.is_worker] == [
        *("kvmanager-0", "router-0", "apiserver-0")
    ]


def test_a_worker_is_given_its_model_and_an_apiserver_all_of_them() -> None:
    made, folders = plan(models=[_LARGE, _SMALL]), {"large": "/l", "Small.v2": "/s=2"}
    worker = named(made, "small-v2-aggregated-1").arguments("m", "run", folders)
    assert worker[-6:] == ["--model", "Small.v2", "--model-dir", "/s=2", "--role", "aggregated"]
    apiserver = named(made, "apiserver-0").arguments("m", "run", folders)
    assert apiserver[-4:] == ["--model-dir", "large=/l", "--model-dir", "Small.v2=/s=2"]
    assert "--model" not in apiserver
    control = plan(models=[_LARGE, _SMALL], deployment={"local": {"single_process": True}}).processes[0]
    assert control.arguments("m", "run", folders)[-4:] == apiserver[-4:]


def test_engines_of_several_models_divide_cores_and_have_their_own_settings() -> None:
    made = plan(cores=range(8), models=[_LARGE, _SMALL])
    assert [one.cores for one in workers(made)] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    large, small = named(made, "large-decode-0").env, named(made, "small-v2-aggregated-0").env
    assert large["VLLM_CPU_OMP_THREADS_BIND"] == "2|3"
    assert (large["VLLM_CPU_KVCACHE_SPACE"], small["VLLM_CPU_KVCACHE_SPACE"]) == ("1", "2")
    assert small["VLLM_CPU_OMP_THREADS_BIND"] == "4-5"
    assert (small["MINE"], large.get("MINE")) == ("1", None)
    assert "MINE" not in named(made, "apiserver-0").env


def test_engines_of_several_models_are_dealt_as_many_gpus_as_each_takes() -> None:
    on_cpu = {"source": "hub:a/tiny", "engine": {"device": "cpu"}, "replicas": {"prefill": 1, "decode": 1}}
    made = plan(cores=(0, 1), gpus=range(5), models=[_LARGE, on_cpu, {"source": "hub:a/last"}])
    assert [one.gpus for one in workers(made)] == [(0, 1), (2, 3), (), (), (4,), (0,)]
    assert [one.cores for one in workers(made)] == [(), (), (0,), (1,), (), ()]
    assert made.notes == ("4 engines share 5 GPUs: kv_cache.memory_gb must fit several times.",)


def test_an_engine_larger_than_the_machine_is_named_with_its_model() -> None:
    with pytest.raises(
        ManifestError, match=r"^models\[0\]\.engine\.tensor_parallel: needs 2 GPUs, and there are 1$"
    ):
        plan(gpus=(0,), models=[_LARGE, _SMALL])


def test_the_adapters_of_one_model_let_only_its_workers_ask_the_hub() -> None:
    adapted = _SMALL | {"adapters": [{"name": "x", "source": "hub:a/x"}]}
    made = plan(models=[_LARGE, adapted])
    offline = {one.name: one.env["HF_HUB_OFFLINE"] for one in workers(made)}
    assert set(offline.values()) == {"0", "1"}
    assert {name for name, value in offline.items() if value == "0"} == {
        *("small-v2-aggregated-0", "small-v2-aggregated-1")
    }


def test_a_key_without_effect_is_noted_for_its_model_or_for_all() -> None:
    sim, real = {"source": "hub:a/s", "engine": {"kind": "sim"}}, {"source": "hub:a/r"}
    settings = {"dtype": "float16", "sim": {"blocks": 8}}
    assert plan(models=[sim, real], engine=settings).notes == ()
    assert plan(cores=range(4), models=[real, real | {"name": "b"}], engine=settings).notes == (
        "engine.sim is set, but engine.kind is vllm: it has no effect.",
    )
    own = sim | {"engine": {"kind": "sim", "dtype": "float16"}}
    assert plan(models=[own, real]).notes == (
        "models[0].engine.dtype has no effect on the simulated engine.",
    )
