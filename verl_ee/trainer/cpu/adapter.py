"""The training worker's side of a weight sync."""

from __future__ import annotations

from verl.workers.rollout.vllm_rollout import vllm_rollout


class CpuServerAdapter(vllm_rollout.ServerAdapter):
    """verl's server adapter that lets the weight sender see the call it waits for."""

    async def _execute_method(self, method: str, non_block: bool = False, **kwargs: object) -> object:
        result = await super()._execute_method(method, non_block=non_block, **kwargs)
        if non_block:
            vllm_rollout.BucketedWeightSender.receiver = result
        return result
