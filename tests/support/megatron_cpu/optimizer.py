"""Megatron's distributed optimizer over torch's AdamW, which it takes where TransformerEngine and apex are missing."""

from __future__ import annotations

from typing import Any

import torch


def allocate_before_loading() -> None:
    """Give an optimizer that has not stepped yet the zeros that its first step would start from."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    stock = DistributedOptimizer.sharded_state_dict

    def sharded_state_dict(self: Any, model: Any, is_loading: bool = False, *arguments: Any, **named: Any) -> Any:
        if is_loading and not self.optimizer.state:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
        return stock(self, model, is_loading, *arguments, **named)

    DistributedOptimizer.sharded_state_dict = sharded_state_dict


def keep_steps_apart() -> None:
    """Restore the step of a checkpoint, for every parameter a tensor of its own."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    stock = DistributedOptimizer.load_state_dict

    def load_state_dict(self: Any, state_dict: Any) -> None:
        # Of float32 parameters the optimizer holds views, and torch forbids to write into a view of a leaf otherwise.
        with torch.no_grad():
            stock(self, state_dict)
        (step,) = {group["step"] for group in state_dict["optimizer"]["param_groups"]}
        for state in self.optimizer.state.values():
            state["step"] = torch.tensor(float(step))

    def set_states(self: Any, model_parameter: Any, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[model_parameter]
        main = self.optimizer.param_groups[group]["params"][order]
        main.copy_(tensors["param"])
        for name, value in self.optimizer.state[main].items():
            if name != "step":
                value.copy_(tensors[name])

    DistributedOptimizer.load_state_dict = load_state_dict
    DistributedOptimizer._set_main_param_and_optimizer_states = set_states
