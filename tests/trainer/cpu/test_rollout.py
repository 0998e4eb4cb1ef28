"""Weight syncs with a rollout server that failed or never answers, without a whole job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import zmq

from verl_ee.errors import UpstreamError
from verl_ee.trainer.cpu import rollout


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
