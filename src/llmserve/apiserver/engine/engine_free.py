"""The part of vLLM's EngineClient that is about an engine in this process. There is none here."""

from collections.abc import Mapping
from typing import Any, NoReturn

from vllm.engine.protocol import EngineClient
from vllm.exceptions import VLLMValidationError


class EngineFreeClient(EngineClient):
    """Refuses what only an engine can do; answers what has an obvious answer without one."""

    @property
    def is_running(self) -> bool:
        return True

    @property
    def is_stopped(self) -> bool:
        return False

    @property
    def errored(self) -> bool:
        """Never: workers come and go, and /health says whether enough are there."""
        return False

    @property
    def dead_error(self) -> BaseException:
        return RuntimeError("the apiserver has no engine that could be dead")

    async def is_tracing_enabled(self) -> bool:
        return False

    async def do_log_stats(self) -> None:
        pass

    async def is_sleeping(self) -> bool:
        return False

    async def is_paused(self) -> bool:
        return False

    async def reset_mm_cache(self) -> None:
        pass

    async def reset_encoder_cache(self) -> None:
        pass

    async def notify_kv_transfer_request_rejected(
        self, request_id: str, kv_transfer_params: dict[str, Any], *, data_parallel_rank: int | None = None
    ) -> None:
        """Clients cannot hand in kv_transfer_params here, so there is nothing to clean up."""

    async def start_profile(self, profile_prefix: str | None = None, **limits: Any) -> None:
        _refuse("profiling")

    async def stop_profile(self) -> None:
        _refuse("profiling")

    async def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        _refuse("resetting the prefix cache")

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        _refuse("sleep")

    async def wake_up(self, tags: list[str] | None = None) -> bool:
        _refuse("sleep")

    async def release_kv_cache_memory(self) -> None:
        _refuse("sleep")

    async def add_lora(self, lora_request: Any) -> bool:
        _refuse("loading adapters")

    async def pause_generation(self, *, mode: str = "abort", clear_cache: bool = True) -> None:
        _refuse("pausing")

    async def resume_generation(self) -> None:
        _refuse("pausing")

    async def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        _refuse("collective_rpc")


def _refuse(what: str) -> NoReturn:
    raise VLLMValidationError(f"{what} is not available on the apiserver of a cluster")
