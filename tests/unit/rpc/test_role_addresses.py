"""Kubernetes puts the IP of a pod into `$(POD_IP):7100`, and an IPv6 address has no brackets there."""

from llmserve.apiserver.options import flags as apiserver_flags
from llmserve.rpc.role import common_flags, reached_at

_COMMON = ["--manifest", "m.yaml", "--name", "pod-0"]


def test_a_role_listens_at_the_ipv6_address_of_its_pod() -> None:
    flags = common_flags("router").parse_args([*_COMMON, "--listen", "fd00::5:7100"])
    assert flags.listen == "[fd00::5]:7100"


def test_an_apiserver_listens_at_the_ipv6_address_of_its_pod() -> None:
    given = [*_COMMON, "--http", "fd00::5:8000", "--router", "router:7100"]
    assert apiserver_flags().parse_known_args(given)[0].http == "[fd00::5]:8000"


def test_peers_get_the_host_without_brackets() -> None:
    assert reached_at("[fd00::5]:7100") == "fd00::5"
    assert reached_at("[::]:7100") == "127.0.0.1"
