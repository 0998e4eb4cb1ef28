"""The prediction of `--dry-run` beside the same collection, on the household."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from support.prompts import TOLD_FORM
from transformers import AutoTokenizer

from benchmarks.figures import Exactly, Report, Sample, Within
from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.envs import ExpertTrajectory, make
from verl_ee.experience.collecting.collection import Collection
from verl_ee.experience.collecting.prediction import predict
from verl_ee.experience.cost import Cost
from verl_ee.experience.proposers import Proposal, ProposalBatch, ProposalRequest, listed_proposals

ENVIRONMENT = EnvironmentConfig(id="verl_ee/Household-v0")
TRAJECTORIES, K = 1500, 8
MODEL = Path(__file__).parents[2] / "examples/tiny_base/model"
NEAR = Within((0.75, 1.25))


class CountingProposer:
    """Proposes listed actions, and counts the tokens that a language model would have read and written for them."""

    def __init__(self, trajectories: Sequence[ExpertTrajectory]) -> None:
        self.window = 128
        self._by_task = {trajectory.task: trajectory for trajectory in trajectories}
        self._tokenizer = AutoTokenizer.from_pretrained(MODEL)

    def propose(self, requests: Sequence[ProposalRequest]) -> ProposalBatch:
        alternatives, read, written = [], 0, 0
        for request in requests:
            proposals = self._proposals(request)
            text = self._tokenizer.apply_chat_template(TOLD_FORM.policy_prompt(request.state), tokenize=False)
            read += K * len(self._tokenizer(text)["input_ids"])
            written += sum(len(self._tokenizer(TOLD_FORM.response(item.action))["input_ids"]) for item in proposals)
            alternatives.append(proposals)
        return ProposalBatch(tuple(alternatives), read, written)

    def _proposals(self, request: ProposalRequest) -> tuple[Proposal, ...]:
        listed = request.state.admissible_actions or ()
        return listed_proposals(CollectConfig(k=K), self._by_task[request.task], request.ref.step, listed)


@cache
def experts() -> tuple[ExpertTrajectory, ...]:
    env = make(ENVIRONMENT.id).unwrapped
    return tuple(env.expert_trajectory(f"train/{index}") for index in range(TRAJECTORIES))  # type: ignore[attr-defined]


def figures(report: Report, folder: Path) -> None:
    """Print seconds and tokens, predicted (ours) beside measured (reference), and the environment steps of both."""
    target = folder / "predicted"
    costs: dict[str, Cost] = {}

    def predicted() -> Sample:
        shutil.rmtree(target, ignore_errors=True)
        costs["ours"] = predict(target, experts(), ENVIRONMENT, CollectConfig(k=K)).cost
        return Sample(costs["ours"].seconds, {"env_steps": costs["ours"].env_steps})

    def measured() -> Sample:
        collection = Collection(target, experts(), ENVIRONMENT, CollectConfig(k=K), {})
        costs["reference"] = collection.run(quiet=True).cost
        return Sample(costs["reference"].seconds)

    measured()
    expected = costs["reference"].env_steps
    thresholds = {"ratio_to_reference": NEAR, "env_steps": Exactly(expected)}
    report.figure("collect/predicted/seconds", predicted, measured, None, thresholds, {"expected_env_steps": expected})

    def tokens(cost: Cost) -> Sample:
        return Sample(cost.prompt_tokens + cost.completion_tokens)

    few, config = experts()[:200], CollectConfig(k=K, alternatives="policy")

    def predicted_tokens() -> Sample:
        shutil.rmtree(target, ignore_errors=True)
        return tokens(predict(target, few, ENVIRONMENT, config, CountingProposer(few), 8).cost)

    def measured_tokens() -> Sample:
        return tokens(Collection(target, few, ENVIRONMENT, config, {}).run(CountingProposer(few), 8, quiet=True).cost)

    report.figure("collect/predicted/tokens", predicted_tokens, measured_tokens, None, {"ratio_to_reference": NEAR})
