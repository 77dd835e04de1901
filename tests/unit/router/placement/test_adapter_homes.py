"""Where adapters are at home, and how many homes follow from the demand."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable

import pytest

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.ids import AdapterDigest
from llmserve.router.placement.adapter_homes import AdapterHomes, _wanted, first_home
from llmserve.router.workers.worker import ClusterMember, WorkerSlots, WorkerSpec

MakeSpec = Callable[..., WorkerSpec]
WORKERS = 8


def digest(number: int) -> AdapterDigest:
    return AdapterDigest(hashlib.sha256(str(number).encode()).hexdigest())


@pytest.fixture
def members(make_spec: MakeSpec) -> list[ClusterMember]:
    return [ClusterMember(make_spec(f"decode-{n}"), WorkerSlots(), 0.0) for n in range(WORKERS)]


def first_homes(homes: AdapterHomes, members: list[ClusterMember], adapters: int = 2000) -> list[str]:
    return [next(iter(homes.of(digest(number), members))) for number in range(adapters)]


def test_every_worker_is_home_to_as_many(members: list[ClusterMember]) -> None:
    counts = Counter(first_homes(AdapterHomes(), members))
    assert len(counts) == WORKERS
    assert all(0.8 < count * WORKERS / 2000 < 1.2 for count in counts.values())


def test_any_two_routers_agree(members: list[ClusterMember]) -> None:
    assert first_homes(AdapterHomes(), members) == first_homes(AdapterHomes(), members[::-1])


def test_the_first_home_is_known_without_any_memory(members: list[ClusterMember]) -> None:
    known = [first_home(digest(number), members).spec.worker_id for number in range(200)]
    assert known == first_homes(AdapterHomes(), members, 200)


def test_a_worker_that_goes_or_comes_moves_only_its_own(members: list[ClusterMember]) -> None:
    homes = AdapterHomes()
    without = first_homes(homes, members[1:], 500)  # fewer than the orders that are kept
    with_it = first_homes(homes, members, 500)
    moved = [new for old, new in zip(without, with_it, strict=True) if old != new]
    assert set(moved) == {"decode-0"}
    assert 0 < len(moved) < 2 * 500 / WORKERS
    assert first_homes(homes, members[1:], 500) == without


def test_nobody_is_home_where_nobody_is(members: list[ClusterMember]) -> None:
    assert AdapterHomes().of(digest(1), []) == set()


def placed(homes: AdapterHomes, adapter: AdapterDigest, times: int, others: int, at: float) -> None:
    """So many placements of one adapter, with others of the model itself between them, in one moment."""
    for _ in range(times):
        homes.placed(adapter, WORKERS, at)
        for _ in range(others):
            homes.placed(BASE_MODEL, WORKERS, at)


def test_a_popular_one_gets_one_home_more_at_a_time(members: list[ClusterMember]) -> None:
    """A fifth of all requests is 1.6 times a worker's fair share: four homes have 0.4 of a share each."""
    homes, hot = AdapterHomes(), digest(1)
    first = homes.of(hot, members)
    counts = []
    for second in range(60):
        placed(homes, hot, 40, 4, at=float(second))
        counts.append(homes.count(hot))
    assert counts == sorted(counts)
    assert [counts[second] for second in (0, 9, 10, 19, 20, 29, 59)] == [2, 2, 3, 3, 4, 4, 4]
    assert first < homes.of(hot, members)
    assert len(homes.of(hot, members)) == 4


def test_it_gives_them_up_again(members: list[ClusterMember]) -> None:
    homes, hot = AdapterHomes(), digest(1)
    for second in range(40):
        placed(homes, hot, 40, 4, at=float(second))
    assert homes.count(hot) == 4
    for second in range(40, 140):
        placed(homes, hot, 2, 99, at=float(second))
    assert homes.count(hot) == 1
    assert len(homes.of(hot, members)) == 1


@pytest.mark.parametrize(
    ("count", "share", "wanted"),
    [
        (1, 0.5, 1),
        (1, 0.51, 2),
        (3, 1.5, 3),
        (3, 1.51, 4),
        (3, 0.5, 3),
        (3, 0.49, 2),
        (2, 0.24, 1),
        (1, 0.0, 1),
        (8, 8.0, 8),
        (7, 8.0, 8),
    ],
)
def test_the_bounds_lie_apart(count: int, share: float, wanted: int) -> None:
    assert _wanted(count, share, WORKERS) == wanted


def test_steady_demand_changes_nothing() -> None:
    """Ten minutes of 20 requests a second, of 1,000 adapters by Zipf's law, after two minutes to settle."""
    homes, rng = AdapterHomes(), random.Random(3)
    names, weights = [digest(n) for n in range(1000)], [1 / (n + 1) for n in range(1000)]
    changes, at = 0, 0.0
    for adapter in rng.choices(names, weights, k=20 * 600):
        before = homes.count(adapter)
        homes.placed(adapter, WORKERS, at)
        changes += at > 120.0 and homes.count(adapter) != before
        at += 0.05
    assert homes.count(names[0]) in (2, 3)
    assert homes.count(names[500]) == 1
    assert changes <= 16, "at most two in a minute, over all adapters"


def test_what_became_rare_is_forgotten() -> None:
    homes = AdapterHomes()
    for number in range(50):
        placed(homes, digest(number), 60, 0, at=100.0 * number)
        for second in range(1, 60):
            placed(homes, digest(number), 1, 100, at=100.0 * number + second)
    assert len(homes._several) <= 2


def test_one_that_has_just_lost_a_home_gets_none_at_once_though_others_get_some() -> None:
    homes, hot, other = AdapterHomes(), digest(1), digest(2)
    placed(homes, hot, 40, 4, at=0.0)
    assert homes.count(hot) == 2
    placed(homes, BASE_MODEL, 5000, 0, at=20.0)
    homes.placed(hot, WORKERS, 20.0)
    assert homes.count(hot) == 1
    placed(homes, other, 60, 4, at=21.0)
    assert homes.count(other) == 2
    placed(homes, hot, 100, 0, at=29.0)
    assert homes.count(hot) == 1, "less than ten seconds ago it had one home more"
    placed(homes, hot, 100, 0, at=30.0)
    assert homes.count(hot) == 2


def test_workers_that_are_gone_are_forgotten(make_spec: MakeSpec) -> None:
    homes, most = AdapterHomes(), 0
    for number in range(300):
        member = ClusterMember(make_spec(f"decode-{number}"), WorkerSlots(), 0.0)
        assert homes.of(digest(number), [member]) == {member.spec.worker_id}
        most = max(most, len(homes._workers))
    assert most == 1 + 64 + 1, (
        "the one that is there, those that may come back, and the one that was too many"
    )


def test_few_orders_are_kept(members: list[ClusterMember]) -> None:
    homes = AdapterHomes()
    first_homes(homes, members)
    assert len(homes._orders) == 1024
