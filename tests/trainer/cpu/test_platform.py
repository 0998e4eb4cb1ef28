"""The CPU platform where it can be tested without a whole job; tests/test_job.py runs the rest."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
import zmq

from verl_ee.errors import UpstreamError
from verl_ee.trainer import upstream
from verl_ee.trainer.cpu import HURDLES, active, extension, rollout

pytestmark = pytest.mark.skipif(not active(), reason="this machine has an accelerator")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Sender:
    """The part of verl's sender that the bound wraps."""

    socket: zmq.Socket

    def __init__(self, address: str) -> None:
        self.address = address

    def _init_socket(self) -> None:
        self.socket = zmq.Context.instance().socket(zmq.REQ)
        self.socket.bind(self.address)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[zmq.Socket]:
    """The receiver's socket, connected."""
    socket = zmq.Context.instance().socket(zmq.REP)
    socket.connect(f"ipc://{tmp_path}/sync")
    yield socket
    socket.close(linger=0)


def test_a_receiver_that_failed_ends_the_weight_sync_with_its_cause(cluster: None, tmp_path: Path) -> None:
    @ray.remote
    def receive() -> None:
        raise RuntimeError("no parameter called lm_head")

    bounded = rollout._bounded(Sender)
    bounded.receiver = receive.remote()
    sender = bounded(f"ipc://{tmp_path}/sync")
    sender._init_socket()
    # Nobody has connected: a plain request socket would block here for ever.
    with pytest.raises(UpstreamError, match="no parameter called lm_head"):
        sender.socket.send_pyobj("weights")
    sender.socket.close()


def test_a_receiver_that_never_answers_ends_it_too(
    peer: zmq.Socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout, "WEIGHT_SYNC_SECONDS", 1.0)
    sender = rollout._bounded(Sender)(f"ipc://{tmp_path}/sync")
    sender._init_socket()
    sender.socket.send_pyobj("weights")
    assert peer.recv_pyobj() == "weights"
    with pytest.raises(UpstreamError, match="VERL_EE_WEIGHT_SYNC_SECONDS"):
        sender.socket.recv()
    sender.socket.close()


def test_an_answer_arrives(peer: zmq.Socket, tmp_path: Path) -> None:
    sender = rollout._bounded(Sender)(f"ipc://{tmp_path}/sync")
    sender._init_socket()
    sender.socket.send_pyobj("weights")
    assert peer.recv_pyobj() == "weights"
    peer.send(b"ok")
    assert sender.socket.recv() == b"ok"
    sender.socket.close()


def test_the_cpu_build_answers_to_the_name_vllm() -> None:
    assert importlib.metadata.version("vllm").endswith("+cpu")


@pytest.mark.parametrize("name", upstream.NAMES + upstream.ROLLOUT_NAMES + upstream.VLLM_NAMES, ids=str)
def test_upstream_name_is_as_relied_on(name: upstream.Name) -> None:
    assert upstream.problem_with(name) == ""


def test_a_name_that_differs_is_reported() -> None:
    assert "has no 'gone'" in upstream.problem_with(upstream.Name("json", "gone"))
    assert "takes no sideways" in upstream.problem_with(upstream.Name("shutil", "which", ("sideways",)))
    assert "cannot be imported" in upstream.problem_with(upstream.Name("verl.gone", "x"))


def test_every_hurdle_says_why_and_until_when() -> None:
    for hurdle in HURDLES:
        assert hurdle.reason
        assert hurdle.until
        assert hurdle.clear.__doc__


@pytest.mark.parametrize(
    ("tied", "sent", "loaded"),
    [
        (True, {"model.embed_tokens.weight": 1.0, "model.norm.weight": 2.0}, {"lm_head.weight": 1.0}),
        (True, {"model.embed_tokens.weight": 1.0, "lm_head.weight": 1.0}, {}),
        (False, {"model.embed_tokens.weight": 1.0, "lm_head.weight": 3.0}, {}),
    ],
)
def test_an_output_layer_that_shares_the_embedding_is_reloaded_too(
    monkeypatch: pytest.MonkeyPatch, tied: bool, sent: dict[str, float], loaded: dict[str, float]
) -> None:
    class Receiver:
        def __init__(self, *_: Any) -> None:
            pass

        def receive_weights(self, on_bucket: Any) -> None:
            on_bucket([(name, torch.tensor([value])) for name, value in sent.items()], True)

    found: dict[str, float] = {}
    runner = SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(tie_word_embeddings=tied)),
        reload_weights=lambda weights_iterator: found.update({name: float(value) for name, value in weights_iterator}),
    )
    worker: Any = SimpleNamespace(model_runner=runner, _get_zmq_handle=lambda: "")
    monkeypatch.setattr(extension, "BucketedWeightReceiver", Receiver)
    extension.CpuWorkerExtension.update_weights_from_ipc(worker)
    assert found == sent | loaded


def test_an_adapter_is_refused_by_the_server_too() -> None:
    worker: Any = SimpleNamespace()
    with pytest.raises(UpstreamError, match=r"Set actor_rollout_ref\.model\.lora\.merge=True"):
        extension.CpuWorkerExtension.update_weights_from_ipc(worker, {"r": 8})
