"""Checks the kernel's settings of TCP, and RDMA devices."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmserve.doctor.finding import Finding, note, ok, problem, warning
from llmserve.doctor.host import MIB, Host, size

_IPV4 = "proc/sys/net/ipv4"
_FAST_LINK_BYTES = 4 * MIB  # in flight on 100 Gbit/s at 0.3 ms
_WANTED = "cubic"
_INFINIBAND = "sys/class/infiniband"


def congestion_control(host: Host) -> Finding:
    """The tcp transport asks for cubic itself: bbr, a common default, stalls bursts for 200 ms."""
    current = host.text(f"{_IPV4}/tcp_congestion_control") or "unknown"
    allowed = host.text(f"{_IPV4}/tcp_allowed_congestion_control").split()
    available = host.text(f"{_IPV4}/tcp_available_congestion_control").split()
    if not current.startswith("bbr"):
        return ok("congestion control", current)
    if _WANTED in allowed or _WANTED in available:
        advice = (
            "The tcp transport asks for cubic itself where it may. NIXL over TCP does not, and bbr "
            "stalls its bursts for up to 200 ms: sysctl net.ipv4.tcp_congestion_control=cubic"
        )
        return note("congestion control", current, advice)
    advice = "bbr stalls transfers for up to 200 ms, and cubic is not loaded: modprobe tcp_cubic"
    return warning("congestion control", current, advice)


def socket_buffers(host: Host) -> Finding:
    """The third number of tcp_rmem and tcp_wmem is the size to which TCP may grow its buffers by itself."""
    receive, send = _largest(host, "tcp_rmem"), _largest(host, "tcp_wmem")
    value = f"receive {size(receive)}, send {size(send)} at most"
    figures = {"receive_bytes": receive, "send_bytes": send}
    if min(receive, send) >= _FAST_LINK_BYTES:
        return ok("socket buffers", value, **figures)
    advice = (
        "Enough on one machine; between machines on a fast network, allow 16 MiB: "
        'sysctl net.ipv4.tcp_rmem="4096 131072 16777216" net.ipv4.tcp_wmem="4096 65536 16777216"'
    )
    return note("socket buffers", value, advice, **figures)


def _largest(host: Host, name: str) -> int:
    numbers = host.text(f"{_IPV4}/{name}").split()
    return int(numbers[-1]) if numbers else 0


@dataclass(frozen=True, slots=True)
class RdmaPort:
    """name: DEVICE/PORT."""

    name: str
    state: str
    rate: str
    link: str

    @property
    def is_active(self) -> bool:
        return self.state == "ACTIVE"


def rdma_ports(host: Host) -> list[RdmaPort]:
    return list(_rdma_ports(host))


def _rdma_ports(host: Host) -> Iterator[RdmaPort]:
    for device in host.names(_INFINIBAND):
        for port in host.names(f"{_INFINIBAND}/{device}/ports"):
            folder = f"{_INFINIBAND}/{device}/ports/{port}"
            state = host.text(f"{folder}/state").rpartition(":")[2].strip() or "unknown"
            rate, link = host.text(f"{folder}/rate"), host.text(f"{folder}/link_layer")
            yield RdmaPort(f"{device}/{port}", state, rate, link)


def rdma(host: Host, ports: list[RdmaPort]) -> Finding:
    if not ports:
        return ok("RDMA", "none", active_ports=0)
    value = "; ".join(" ".join(filter(None, (one.name, one.state, one.rate, one.link))) for one in ports)
    active = sum(port.is_active for port in ports)
    if not active:
        advice = "No port is active: check cable, switch and, for InfiniBand, the subnet manager."
        return warning("RDMA", value, advice, active_ports=0)
    if not any(name.startswith("uverbs") for name in host.names("dev/infiniband")):
        advice = (
            "The devices are there, but this process may not use them (/dev/infiniband is empty): "
            "docker run --device=/dev/infiniband"
        )
        return problem("RDMA", value, advice, active_ports=active)
    return ok("RDMA", value, active_ports=active)
