"""Episodes of a GRPO step whose environment failed, in verl's own queue and with verl's own advantages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy
import pytest
import torch
import transfer_queue as tq
from support.episode_infos import info
from transfer_queue import KVBatchMeta
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import AdvantageEstimator
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_ee.trainer.step_episodes import episode_infos, without_failed

FAILED = None
"""Score of an episode whose environment failed."""


@pytest.fixture(scope="module")
def queue(cluster: None) -> Iterator[None]:
    tq.init()
    yield
    tq.close()


def put(groups: Mapping[str, Sequence[float | None]]) -> KVBatchMeta:
    """Put episodes of two turns each, by their scores, as verl's worker of agent loops does."""
    keys, rows = [], []
    for group, scores in groups.items():
        for number, score in enumerate(scores):
            extra = {"reward_extra_info": info(env_error="" if score is not FAILED else "it hung")}
            for turn in range(2):
                keys.append(f"{group}_{number}_{turn}")
                # The prompt and the response have two tokens each.
                mask = torch.full((2,), int(score is not FAILED))
                rewards = torch.tensor([0.0, score or 0.0])
                ids = {name: torch.tensor([5, 6]) for name in ("prompts", "responses")}
                ids |= {name: torch.arange(4) for name in ("input_ids", "position_ids")}
                rows.append(
                    {
                        "uid": group,
                        "extra_fields": extra,
                        "response_mask": mask,
                        "loss_mask": mask,
                        "rm_scores": rewards,
                    }
                    | ids
                )
    tags = [{"status": "success", "prompt_len": 2, "response_len": 2, "seq_len": 4} for _ in keys]
    tq.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(rows), tags=tags)
    return KVBatchMeta(keys=keys, tags=tags, partition_id="train", extra_info={"temperature": 1.0})


def learned(batch: KVBatchMeta, multiple: int = 8) -> dict[str, float]:
    """Return the advantage of each turn that has something to learn, as verl's trainer finds it; then clear all."""
    left = without_failed(batch, episode_infos(batch))
    assert left.extra_info == {"temperature": 1.0}
    assert set(tq.kv_list("train")["train"]) == set(left.keys)
    padded = upsample_batch_to_divisible_size(left, multiple, eos_token_id=0)
    assert len(padded) % multiple == 0
    fields = ["uid", "response_mask", "rm_scores"]
    data = DataProto(batch=tq.kv_batch_get(padded.keys, "train", fields).to_padded_tensor())
    data.non_tensor_batch["uid"] = numpy.array(data.batch.pop("uid").tolist(), dtype=object)
    data.batch["token_level_rewards"] = data.batch["rm_scores"]
    done = compute_advantage_for_multi_trajectories(data, padded.keys, AdvantageEstimator.GRPO)
    masks = done.batch["response_mask"].bool()
    # The divisor of the loss of a mini-batch in verl.
    assert all(masks[begin : begin + multiple].any() for begin in range(0, len(masks), multiple))
    tq.kv_clear(padded.keys, "train")
    advantages = zip(padded.keys, done.batch["advantages"][:, 0].tolist(), masks[:, 0].tolist(), strict=True)
    return {key: round(advantage, 3) for key, advantage, is_learned in advantages if is_learned}


def test_a_group_is_compared_with_those_that_did_not_fail(queue: None) -> None:
    advantages = learned(put({"a": [1.0, 1.0, 1.0, FAILED], "b": [FAILED, 0.0, 1.0, 0.0]}))
    # Mean 1/3; the deviation of a sample of 0, 1, 0 is 0.577.
    expected = {"a_0": 0.0, "a_1": 0.0, "a_2": 0.0, "b_1": -0.577, "b_2": 1.155, "b_3": -0.577}
    assert advantages == {f"{episode}_{turn}": value for episode, value in expected.items() for turn in range(2)}


def test_a_mini_batch_of_failed_episodes_vanishes(queue: None) -> None:
    assert set(learned(put({"a": [FAILED] * 4, "b": [1.0, 0.0, 0.0, 1.0]}))) == {
        f"b_{number}_{turn}" for number in range(4) for turn in range(2)
    }


def test_an_episode_that_is_left_alone_has_nothing_to_be_compared_with(
    queue: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(learned(put({"a": [1.0, FAILED], "b": [1.0, 0.0], "c": [1.0]}))) == {
        f"{episode}_{turn}" for episode in ("b_0", "b_1", "c_0") for turn in range(2)
    }
    assert "1 episodes are left out too" in capsys.readouterr().err


def test_a_step_is_never_empty(queue: None) -> None:
    assert learned(put({"a": [1.0, FAILED]})) == {"a_0_0": 1.0, "a_0_1": 1.0}


def test_a_step_without_failures_stays_as_it_is(queue: None) -> None:
    batch = put({"a": [1.0, 0.0], "b": [0.0, 0.0]})
    assert without_failed(batch, episode_infos(batch)) is batch
    tq.kv_clear(batch.keys, "train")
