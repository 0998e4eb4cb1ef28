"""Servers sleep and wake around a stage; those of `separate_async` by verl's own methods, on what they call."""

from __future__ import annotations

from typing import Any

from verl.trainer.ppo.v1.trainer_separate_async import HybridEngineMode, PPOTrainerSeparateAsync

from verl_ee.trainer.rollout.servers import SeparateServers, SharedServers


class Manager:
    """verl's checkpoint manager, which notes its calls."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name, self._calls = name, calls

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any, **named: Any) -> None:
            self._calls.append(" ".join(map(str, (self._name, method, *arguments, *named.values()))))

        return call


class Trainer:
    """The part of verl's `separate_async` trainer that its methods use, at the first step of GRPO."""

    switch_to_rollout = PPOTrainerSeparateAsync.switch_to_rollout
    switch_to_trainer = PPOTrainerSeparateAsync.switch_to_trainer

    def __init__(self, has_hybrid_replicas: bool) -> None:
        self.calls: list[str] = []
        self.global_steps = 1
        self._enable_hybrid_replicas = has_hybrid_replicas
        self.current_mode = HybridEngineMode.ROLLOUT if has_hybrid_replicas else HybridEngineMode.TRAINER
        self.standalone_checkpoint_manager = Manager("standalone", self.calls)
        self.checkpoint_manager = Manager("hybrid", self.calls)

    def add_replicas_to_balancer(self) -> None:
        self.calls.append("balancer gets hybrid")

    def remove_replicas_from_balancer(self) -> None:
        self.calls.append("balancer loses hybrid")


def test_servers_that_share_a_device_sleep_and_wake() -> None:
    calls: list[str] = []
    servers = SharedServers(Manager("hybrid", calls))  # type: ignore[arg-type]
    servers.sleep()
    servers.wake()
    assert calls == ["hybrid sleep_replicas", "hybrid update_weights 0"]


def test_servers_with_devices_of_their_own_get_the_weights_of_every_stage() -> None:
    trainer = Trainer(has_hybrid_replicas=True)
    servers = SeparateServers(trainer)
    servers.sleep()
    # No request may reach a server that sleeps.
    assert trainer.calls == ["balancer loses hybrid", "hybrid abort_replicas True", "hybrid sleep_replicas"]
    trainer.calls.clear()
    servers.wake()
    assert trainer.calls == [
        *("standalone update_weights 0", "hybrid update_weights 0"),
        *("hybrid resume_generation_replicas", "balancer gets hybrid"),
    ]
    assert trainer.current_mode is HybridEngineMode.ROLLOUT
    assert trainer.global_steps == 1


def test_without_servers_on_the_actors_devices_nothing_is_asked_of_them() -> None:
    trainer = Trainer(has_hybrid_replicas=False)
    servers = SeparateServers(trainer)
    servers.sleep()
    servers.wake()
    assert trainer.calls == ["standalone update_weights 0"]
