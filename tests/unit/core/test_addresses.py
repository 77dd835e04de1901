import pytest

from llmserve.core.addresses import host_of, join_address, split_address, with_brackets


@pytest.mark.parametrize(
    ("host", "address"), [("10.0.0.1", "10.0.0.1:80"), ("name", "name:80"), ("fd00::5", "[fd00::5]:80")]
)
def test_an_ipv6_host_has_brackets_in_an_address_and_nowhere_else(host: str, address: str) -> None:
    assert join_address(host, 80) == address
    assert host_of(address) == host


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("fd00::5:7100", "[fd00::5]:7100"),
        ("[fd00::5]:7100", "[fd00::5]:7100"),
        ("10.0.0.1:7100", "10.0.0.1:7100"),
        (":7100", ":7100"),
        ("name", "name"),
    ],
)
def test_brackets_that_a_pod_left_out_are_added(given: str, address: str) -> None:
    assert with_brackets(given) == address


@pytest.mark.parametrize(
    ("address", "parts"), [("[::1]:80", ("::1", 80)), ("host:0", ("host", 0)), (":80", ("", 80))]
)
def test_an_address_in_two(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


def test_a_port_is_a_number() -> None:
    with pytest.raises(ValueError, match="http"):
        split_address("host:http")
