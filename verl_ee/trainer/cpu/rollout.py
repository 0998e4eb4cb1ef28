"""vLLM's CPU build as verl's rollout server."""

from __future__ import annotations

import os
import time
from types import ModuleType
from typing import TYPE_CHECKING

from zmq.constants import PollEvent

from verl_ee.errors import UpstreamError
from verl_ee.trainer.import_hooks import after_import

if TYPE_CHECKING:
    from ray import ObjectRef
    from zmq.sugar.socket import Socket

EXTENSION = "verl_ee.trainer.cpu.extension.CpuWorkerExtension"
ADAPTER = "verl_ee.trainer.cpu.adapter.CpuServerAdapter"
WEIGHT_SYNC_SECONDS = float(os.environ.get("VERL_EE_WEIGHT_SYNC_SECONDS", "600"))
"""How long a weight sync may make no progress (seconds); a receiver that died ends it within one `POLL_SECONDS`."""
POLL_SECONDS = 0.5


def register_replica() -> None:
    """Serve `rollout.name=vllm` with a replica whose workers reload weights the way the CPU build can."""
    after_import("verl.workers.rollout.replica", lambda module: module.RolloutReplicaRegistry.register("vllm", _load))


def bound_weight_sync() -> None:
    """End a weight sync that cannot finish, with its cause."""

    def select_adapter(module: ModuleType) -> None:
        module._ROLLOUT_REGISTRY[("vllm", "async")] = ADAPTER

    def replace_sender(module: ModuleType) -> None:
        module.BucketedWeightSender = _bounded(module.BucketedWeightSender)  # type: ignore[attr-defined]

    after_import("verl.workers.rollout.base", select_adapter)
    after_import("verl.workers.rollout.vllm_rollout.vllm_rollout", replace_sender)


def _load() -> type:
    import ray
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

    class CpuHttpServer(vLLMHttpServer):
        """verl's vLLM server with the weight update of the CPU build."""

        def _get_worker_extension_cls(self) -> str:
            return EXTENSION

    class CpuReplica(vLLMReplica):
        """verl's vLLM replica on a CPU."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            self.server_class = ray.remote(CpuHttpServer)

    return CpuReplica


class _BoundedSocket:
    """A request socket that looks after the receiver while it waits, to send as well as to receive."""

    def __init__(self, socket: Socket, receiver: ObjectRef | None) -> None:
        self._socket, self._receiver = socket, receiver

    def __getattr__(self, name: str) -> object:
        return getattr(self._socket, name)

    def send_pyobj(self, value: object) -> None:
        # A request socket that nobody has connected to blocks in send.
        self._wait(PollEvent.POLLOUT)
        self._socket.send_pyobj(value)

    def recv(self) -> bytes:
        self._wait(PollEvent.POLLIN)
        return self._socket.recv()

    def _wait(self, event: int) -> None:
        import ray

        deadline = time.monotonic() + WEIGHT_SYNC_SECONDS
        while not self._socket.poll(int(POLL_SECONDS * 1000), event):
            has_ended = self._receiver is not None and bool(ray.wait([self._receiver], timeout=0)[0])
            if has_ended and not self._socket.poll(0, event):
                self._socket.linger = 0
                raise UpstreamError(f"The rollout server could not load the new weights: {_cause(self._receiver)}")
            if time.monotonic() > deadline:
                self._socket.linger = 0
                raise UpstreamError(
                    f"The rollout server did not take the new weights within {WEIGHT_SYNC_SECONDS:.0f} s. "
                    "Set VERL_EE_WEIGHT_SYNC_SECONDS to wait longer."
                )


def _cause(receiver: ObjectRef) -> str:
    import ray

    try:
        ray.get(receiver)
    except Exception as error:
        lines = str(error).strip().splitlines()
        return lines[-1] if lines else type(error).__name__
    return "its receiver returned before all weights had been sent"


def _bounded(stock: type) -> type:
    class BoundedWeightSender(stock):
        """verl's weight sender that neither waits for a receiver that failed nor for ever."""

        receiver: ObjectRef | None = None
        """The pending call in the rollout server; the adapter sets it before it sends."""

        def _init_socket(self) -> None:
            super()._init_socket()
            self.socket: _BoundedSocket = _BoundedSocket(self.socket, type(self).receiver)

    return BoundedWeightSender
