"""The KV store under a running cluster: prompts found again by whom they may be, whatever dies meanwhile.

Last in the folder, and after the cluster of the other files has gone. LLMSERVE_SOAK_SECONDS: how long the
soak takes (10; by hand, ten minutes: 600).
"""

import copy
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bench.cluster import Cluster, running
from bench.processes.memory import MemoryWatch
from tests.support.held import held

MODEL = "SmolLM2-135M-Instruct"
BLOCK_TOKENS = 128
SOAK_SECONDS = float(os.environ.get("LLMSERVE_SOAK_SECONDS", "10"))
SOAK_SAMPLES = 20
# Of each role, from when it is warm: the scratch memory of an engine comes and goes by 100 MiB.
FLAT_MIB = 128.0
# A KV manager that is away costs a prompt this much and no more.
AWAY_SECONDS = 3.0
RED, BLUE = "red-key", "blue-key"


@dataclass(slots=True)
class World:
    """One cluster at a time, over one NVMe directory."""

    manifest: dict[str, Any]
    stack: ExitStack = field(default_factory=ExitStack)
    cluster: Cluster = field(init=False)

    def start(self) -> None:
        self.stop()
        self.cluster = self.stack.enter_context(running(self.manifest))

    def stop(self) -> None:
        self.stack.close()

    def ask(self, prompt: list[int], key: str = RED, tokens: int = 6, **more: Any) -> dict[str, Any]:
        response = self.post(prompt, key, tokens, **more)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def post(self, prompt: list[int], key: str = RED, tokens: int = 6, **more: Any) -> httpx.Response:
        body = {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            **more,
        }
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{self.cluster.url}/v1/completions", json=body, headers=headers, timeout=120)

    def forget_devices(self) -> None:
        """More prompts than the engines' own blocks have room for."""
        for _ in range(3):
            self.ask(prompt_of(8 * BLOCK_TOKENS), tokens=2)

    def kill(self, *names: str) -> None:
        """Until the supervisor has others."""
        old = {name: self.cluster.pid(name) for name in names}
        for pid in old.values():
            os.kill(pid, signal.SIGKILL)

        def returned() -> bool:
            roles = [self.cluster.role(name) for name in names]
            return all(role["pid"] != old[role["name"]] and role["stand"] == "ready" for role in roles)

        eventually(f"others for {', '.join(names)}", returned, 120)

    def change(self, name: str, section: str, **keys: Any) -> None:
        """Changes the manifest. The role reads it again when it comes back."""
        path = Path(self.cluster.state()["manifest"])
        manifest = yaml.safe_load(path.read_text())
        manifest["spec"][section] |= keys
        path.write_text(yaml.safe_dump(manifest))
        self.kill(name)

    def pids(self) -> dict[str, int]:
        return {str(role["name"]): int(role["pid"]) for role in self.cluster.state()["roles"]}

    @contextmanager
    def written(self) -> Iterator[None]:
        """Waits until blocks have gone down to the disk since the beginning, and none waits for that."""

        def disk(metric: str) -> float:
            return self.cluster.total("kvmanager-0", metric, 'tier="disk"')

        before = disk("kv_store_store_bytes_total")
        yield
        eventually(
            "written to the disk",
            lambda: disk("kv_store_store_bytes_total") > before and not disk("kv_store_queued_bytes"),
            30,
        )

    def held(self) -> dict[str, float]:
        """What is leased or reserved somewhere, or still runs."""
        store = self.cluster.metrics("kvmanager-0")
        names = ("kv_store_open_leases", "kv_store_reserved_blocks")
        return {name: store[name] for name in names if store[name]} | held(self.cluster)


@pytest.fixture(scope="module")
def copied_model(model_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For a test to edit."""
    copy = tmp_path_factory.mktemp("models") / "model"
    shutil.copytree(model_dir, copy)
    return copy


def edit_two_matrices(model: Path) -> None:
    """In place: the file keeps its size."""
    path = model / "model.safetensors"
    with path.open("r+b") as file:
        begin = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(begin - 8))
        for layer in (3, 17):
            first, end = header[f"model.layers.{layer}.self_attn.k_proj.weight"]["data_offsets"]
            file.seek(begin + first)
            halves = file.read(end - first)
            file.seek(begin + first)
            file.write(halves[len(halves) // 2 :] + halves[: len(halves) // 2])


@pytest.fixture(scope="module")
def world(
    manifest: dict[str, Any],
    before_the_store: ExitStack,
    copied_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    before_the_store.close()
    own = copy.deepcopy(manifest)
    spec = own["spec"]
    spec["models"]["primary"] = {"source": f"dir:{copied_model}", "name": MODEL}
    spec["kv_cache"] = {"memory_gb": 0.06}  # 22 blocks
    spec["transfer"] = {"mode": "auto", "push_min_tokens": 3 * BLOCK_TOKENS}
    spec["security"] = {
        "api_keys": [{"tenant": "red", "key": RED}, {"tenant": "blue", "key": BLUE}],
        "kv_sharing": "tenant",
    }
    # 85 blocks: less than the tests use in all, more than one of them does.
    spec["storageClasses"] = [
        {"name": "memory", "tier": "dram", "capacity_gb": 0.25},
        {
            "name": "disk",
            "tier": "nvme",
            "capacity_gb": 1.0,
            "location": str(tmp_path_factory.mktemp("nvme")),
        },
    ]
    world = World(own)
    try:
        world.start()
        yield world
    finally:
        world.stop()


# " one two three four five six seven eight nine ten"
COUNTED = (582, 827, 1296, 1876, 2531, 2976, 4962, 4475, 7462, 3772)


def prompt_of(tokens: int, seed: int | None = None) -> list[int]:
    """A beginning of its own, then counting: of what follows, the model is sure, however it is computed."""
    draw = random.Random(seed)
    return [*(draw.randint(300, 20_000) for _ in range(16)), *COUNTED * tokens][:tokens]


def cached(answer: dict[str, Any]) -> int:
    details = answer["usage"]["prompt_tokens_details"]
    return int(details["cached_tokens"]) if details else 0


def text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


def eventually(what: str, check: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


@pytest.mark.parametrize(("blocks", "way"), [(2, "pull"), (5, "push")])
def test_a_prompt_that_the_devices_have_forgotten_is_loaded_and_handed_over(
    world: World, blocks: int, way: str
) -> None:
    """Once, by prefill: decode gets it from there, whichever way."""
    prompt = prompt_of(blocks * BLOCK_TOKENS + 9, seed=blocks)
    computed = world.ask(prompt)
    assert cached(computed) == 0
    for _ in range(5):  # a push is tried among the first ones
        world.forget_devices()
        response = world.post(prompt)
        assert cached(response.json()) == blocks * BLOCK_TOKENS
        assert "x-llmserve-fallback" not in response.headers
        assert text(response.json()) == text(computed)
        if response.headers["x-llmserve-handover"] == way:
            return
    pytest.fail(f"none of five came by {way}")


def test_the_next_turn_finds_what_was_generated(world: World) -> None:
    """Decode has stored it; prefill, which never saw it, loads it."""
    prompt = prompt_of(2 * BLOCK_TOKENS - 20, seed=12)
    first = world.ask(prompt, tokens=30, return_token_ids=True)
    turn = prompt + first["choices"][0]["token_ids"]
    assert cached(world.ask(turn)) == 2 * BLOCK_TOKENS


def test_tenants_find_only_their_own(world: World) -> None:
    prompt = prompt_of(2 * BLOCK_TOKENS + 9, seed=13)
    mine = world.ask(prompt, RED)
    assert cached(world.ask(prompt, BLUE)) == 0
    again = world.ask(prompt, BLUE)
    assert cached(again) == 2 * BLOCK_TOKENS
    assert text(again) == text(mine)


def test_a_kv_manager_that_dies_under_load_costs_hits_only(world: World) -> None:
    prompt = prompt_of(3 * BLOCK_TOKENS + 9, seed=14)
    world.ask(prompt)
    load = Load(world, clients=3, aborts=0.0)
    with load:
        time.sleep(2)
        world.kill("kvmanager-0")
        time.sleep(3)
    assert load.answered
    assert load.failed == []

    def found_again() -> bool:
        """Engines attach to the new one with their next requests, and wait for its answer only as long as it
        takes them to compute the blocks: on a busy machine one more prompt, or several, may be missed."""
        world.ask(prompt)
        world.forget_devices()
        return cached(world.ask(prompt, RED)) == 3 * BLOCK_TOKENS

    eventually("the prompt is stored again, and found", found_again, 120)


def test_a_kv_manager_that_hangs_delays_a_prompt_but_a_moment(world: World) -> None:

    def seconds() -> float:
        began = time.monotonic()
        world.ask(prompt_of(BLOCK_TOKENS + 9), tokens=2)
        return time.monotonic() - began

    # What a block costs to compute is known then, and so for how long it is waited for.
    usual = max(seconds() for _ in range(2))
    pid = world.cluster.pid("kvmanager-0")
    os.kill(pid, signal.SIGSTOP)
    try:
        took = [seconds() for _ in range(4)]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert max(took) < AWAY_SECONDS + usual
    assert took[-1] < AWAY_SECONDS / 2 + usual, f"only the first waits: {took}, usually {usual:.2f}"


def test_nothing_stays_of_requests_that_are_aborted_anywhere(world: World) -> None:
    world.forget_devices()  # so that all their blocks have been written to, and their memory is theirs
    load, memory = Load(world, clients=4, aborts=0.5), MemoryWatch(world.pids())
    with load:
        for _ in range(SOAK_SAMPLES):
            time.sleep(SOAK_SECONDS / SOAK_SAMPLES)
            memory.sample()
    assert load.answered
    assert load.failed == []
    print(f"{load.answered} answered; private memory grew by (MiB): {memory.growth_mib()}")
    assert max(memory.growth_mib().values()) < FLAT_MIB
    eventually(f"all given back, but {world.held()}", lambda: not world.held(), 35)


def test_pushed_prompts_get_the_same_answers(
    world: World, parity_cases: list[dict[str, Any]], reference: list[list[int]]
) -> None:
    """However short they are. The router chooses the way."""
    world.change("router-0", "transfer", mode="push")
    by_length = sorted(range(len(parity_cases)), key=lambda number: len(parity_cases[number]["prompt"]))
    for number in by_length[:36:3]:  # the shortest, and some of two blocks
        response = world.post(parity_cases[number]["prompt"], return_token_ids=True)
        assert response.json()["choices"][0]["token_ids"] == reference[number][:6]
        assert response.headers["x-llmserve-handover"] == "push"
    after, ledger = world.cluster.metrics("decode-0"), world.cluster.metrics("kvmanager-0")
    assert after["kv_orphan_blocks"] == after["kv_leased_blocks"] == 0
    assert ledger["kv_orphan_blocks"] == ledger["kv_open_leases"] == 0


def test_a_cluster_that_was_restarted_finds_what_its_disk_holds(world: World) -> None:
    prompt = prompt_of(4 * BLOCK_TOKENS + 9, seed=15)
    with world.written():
        world.ask(prompt)
        before = world.ask(prompt)  # asked for twice: it goes down
    world.start()
    after = world.ask(prompt)
    assert cached(after) == 4 * BLOCK_TOKENS
    assert text(after) == text(before)


def test_nothing_of_a_model_is_found_after_two_of_its_matrices_were_edited(
    world: World, copied_model: Path
) -> None:
    """Engines that start name the model by what is in its files now. All tiers still hold what was stored."""
    prompt = prompt_of(4 * BLOCK_TOKENS + 9, seed=17)
    with world.written():
        for _ in range(2):  # asked for twice: it goes down
            world.ask(prompt)
    edit_two_matrices(copied_model)
    world.kill("prefill-0", "decode-0")
    assert cached(world.ask(prompt)) == 0
    assert cached(world.ask(prompt)) == 4 * BLOCK_TOKENS, "of the new model, it is"


def test_tenants_share_when_they_are_told_to(world: World) -> None:
    """The apiserver makes the keys of blocks."""
    world.change("apiserver-0", "security", kv_sharing="cluster")
    prompt = prompt_of(2 * BLOCK_TOKENS + 9, seed=16)
    assert cached(world.ask(prompt, RED)) == 0
    assert cached(world.ask(prompt, BLUE)) == 2 * BLOCK_TOKENS


class Load:
    """Clients that ask what was asked before, or not, and hang up with the given probability."""

    def __init__(self, world: World, clients: int, aborts: float) -> None:
        self._world, self._aborts = world, aborts
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        self.answered = 0
        self.failed: list[str] = []

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, number: int) -> None:
        draw = random.Random(number)
        while not self._stop.is_set():
            prompt = prompt_of(draw.randint(1, 5) * BLOCK_TOKENS + 9, seed=draw.randint(100, 120))
            leaves_after = draw.uniform(0, 3) if draw.random() < self._aborts else None
            try:
                self._ask(prompt, draw.choice((RED, BLUE)), draw.choice((2, 40)), leaves_after)
            except httpx.HTTPError as error:
                self.failed.append(repr(error))

    def _ask(self, prompt: list[int], key: str, tokens: int, leaves_after: float | None) -> None:
        if leaves_after is None:
            response = self._world.post(prompt, key, tokens)
            if response.status_code == 200:
                self.answered += 1
            else:
                self.failed.append(response.text)
            return
        body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
        headers = {"authorization": f"Bearer {key}"}
        url = f"{self._world.cluster.url}/v1/completions"
        with suppress(httpx.ReadTimeout):
            httpx.post(url, json=body, headers=headers, timeout=httpx.Timeout(30, read=leaves_after + 0.01))
