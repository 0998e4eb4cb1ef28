"""verl's FSDP engines on the device `cpu`."""

from __future__ import annotations

from types import ModuleType

import torch

from verl_ee.trainer.import_hooks import after_import


def register_engine() -> None:
    """Register the FSDP and FSDP2 engines for `cpu`, with a reference model that stays in ordinary memory."""
    after_import("verl.workers.engine.fsdp.transformer_impl", _register)


def use_whole_log_softmax() -> None:
    """Compute log-probabilities of a whole batch at once, with verl's own function for it."""

    def replace(module: ModuleType) -> None:
        module.logprobs_from_logits_v2 = module.logprobs_from_logits_naive  # type: ignore[attr-defined]

    after_import("verl.utils.torch_functional", replace)


def synchronise_on_cpu() -> None:
    """Let FSDP broadcast weights that are in a CPU's memory, which gloo can."""

    def replace(module: ModuleType) -> None:
        module._check_module_states_for_sync_module_states = lambda _: None  # type: ignore[attr-defined]

    after_import("torch.distributed.fsdp._init_utils", replace)


def leave_weights_in_memory() -> None:
    """Let FSDP engines save and load weights where they are: there is no device to bring them to."""

    def replace(module: ModuleType) -> None:
        module.load_fsdp_model_to_gpu = lambda model: None  # type: ignore[attr-defined]

    after_import("verl.workers.engine.fsdp.transformer_impl", replace)


def _register(module: ModuleType) -> None:
    from verl.workers.engine.base import EngineRegistry

    class CpuFSDPEngine(module.FSDPEngineWithLMHead):  # type: ignore[name-defined]
        """FSDP on a CPU: parameters are where they belong, so nothing is offloaded."""

        def _build_fsdp_module(self, model: torch.nn.Module) -> torch.nn.Module:
            # verl offloads a forward-only model through CPUOffloadPolicy(pin_memory=True), and pinning needs an
            # accelerator. Wrapped as a trainable one it is not offloaded; nobody builds an optimizer for it.
            config = self.engine_config
            forward_only = config.forward_only
            object.__setattr__(config, "forward_only", False)
            try:
                return super()._build_fsdp_module(model)
            finally:
                object.__setattr__(config, "forward_only", forward_only)

    EngineRegistry.register("language_model", ["fsdp", "fsdp2"], device="cpu")(CpuFSDPEngine)
