import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.config.plan_types import ProcessRole, ProcessSpec, deal, divide, omp_binding, ranges

core_lists = st.lists(st.integers(0, 200), unique=True, max_size=40).map(sorted)


@given(core_lists, st.integers(1, 20))
def test_division_is_even_and_gives_out_everything_once(cores: list[int], takers: int) -> None:
    shares = divide(cores, takers)
    assert len(shares.of) == takers
    sizes = [len(share) for share in shares.of]
    assert max(sizes) - min(sizes) <= 1
    if not shares.shared:
        assert [core for share in shares.of for core in share] == cores
    assert shares.shared == (0 < len(cores) < takers)


def test_nobody_to_divide_between() -> None:
    assert divide((0, 1), 0).of == ()


def test_dealing_gives_each_its_number() -> None:
    assert deal((0, 1, 2, 3), (2, 2)).of == ((0, 1), (2, 3))
    again = deal((0, 1, 2), (2, 2))
    assert again.of == ((0, 1), (2, 0))
    assert again.shared
    assert deal((), (2, 2)).of == ((), ())


@pytest.mark.parametrize(
    ("cores", "text"), [((), ""), ((0,), "0"), ((0, 1, 2, 3), "0-3"), ((6, 0, 1, 3), "0-1,3,6")]
)
def test_ranges(cores: tuple[int, ...], text: str) -> None:
    assert ranges(cores) == text


def test_omp_binding_separates_ranks() -> None:
    assert omp_binding((0, 1, 2, 3), 1) == "0-3"
    assert omp_binding((0, 1, 4, 5), 2) == "0-1|4-5"
    assert omp_binding((7,), 2) == "7|7"


def test_a_process_without_addresses_has_no_options_for_them() -> None:
    spec = ProcessSpec(ProcessRole.ROUTER, "router-0", "llmserve.router")
    options = ["--manifest", "m.yaml", "--name", "router-0", "--run-dir", "run", "--metrics-port", "0"]
    assert spec.arguments("m.yaml", "run", {"m": "model"}) == options
    assert spec.command("m.yaml", "run") == ["-P", "-m", "llmserve.router", *options]
