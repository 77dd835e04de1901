"""What may be different or go wrong between two engines of which at least one has its KV on a device."""

from collections.abc import Callable, Iterator

import pytest

from tests.integration.engines.engine_ranks import (
    BLANK,
    ID,
    NEW,
    OLD,
    SOURCE,
    TARGET,
    EngineRank,
    eventually,
    finish,
    reserve,
    step,
)

Make = Callable[..., EngineRank]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[EngineRank] = []

    def rank(*arguments: object, **options: object) -> EngineRank:
        made.append(EngineRank(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield rank
    for one in made[::-1]:
        one.close()


@pytest.mark.parametrize("on_device", ["prefill", "decode"])
@pytest.mark.parametrize("way", ["pull", "push"])
def test_engines_of_different_memory(make: Make, on_device: str, way: str) -> None:
    prefill = make("prefill-0", OLD, on_device=on_device == "prefill")
    decode = make("decode-0", BLANK, on_device=on_device == "decode")
    if way == "pull":
        prefill.grant(ID)
        decode.pull(prefill.params(ID))
    else:
        reserve(decode, prefill)
        prefill.side.computed(0, step(prefill, 0, 2))
        finish(prefill)
    eventually(lambda: decode.ended(ID))
    assert decode.received[ID]
    assert decode.has(OLD, TARGET)
    assert decode.has(BLANK, (0, 2, *range(4, 8)))
    eventually(lambda: ID in prefill.side.take_sent())


def test_kv_of_another_type_is_refused_when_they_meet(make: Make) -> None:
    prefill, decode = make("prefill-0", OLD), make("decode-0", BLANK, kv_dtype="float16")
    prefill.grant(ID)
    decode.pull(prefill.params(ID))
    eventually(lambda: decode.ended(ID))
    assert not decode.received[ID]
    (pull,) = decode.pulls
    assert "the KV caches do not fit: " in pull
    assert "bfloat16" in pull
    assert decode.has(BLANK, TARGET)


@pytest.mark.parametrize("failing", ["prefill", "decode"])
def test_a_copy_that_fails_fails_its_pull_only(make: Make, failing: str) -> None:
    prefill, decode = make("prefill-0", OLD), make("decode-0", BLANK)
    prefill.grant("warm")
    decode.pull(prefill.params("warm"))
    eventually(lambda: decode.ended("warm") and decode.has_probed)
    for name, works in (("broken", False), ("next", True)):
        decode.kv[:] = BLANK
        prefill.grant(name)
        if not works:
            (prefill if failing == "prefill" else decode).device.fail_copy()
        decode.pull(prefill.params(name))
        eventually(lambda name=name: decode.ended(name))  # type: ignore[misc]
        assert decode.received[name] is works
        if works:  # else the copy that failed may have been that of the digest, with all bytes here
            assert decode.has(OLD, TARGET)
        eventually(lambda name=name: name in prefill.side.take_sent())  # type: ignore[misc]


@pytest.mark.parametrize("failing", ["prefill", "decode"])
def test_a_push_whose_copy_fails_becomes_a_pull(make: Make, failing: str) -> None:
    prefill, decode = make("prefill-0", OLD), make("decode-0", BLANK)
    reserve(decode, prefill)
    orders = step(prefill, 0, 2)
    prefill.side.computed(1, orders)
    eventually(lambda: decode.has(OLD, TARGET, slice(1, 2)) and prefill.has_probed and decode.has_probed)
    prefill.kv[:, list(SOURCE)] = NEW
    (prefill if failing == "prefill" else decode).device.fail_copy()
    prefill.side.computed(0, orders)
    finish(prefill)
    eventually(lambda: decode.ended(ID))
    assert decode.received[ID]
    assert decode.has(NEW, TARGET), "pulled after the push had failed"
