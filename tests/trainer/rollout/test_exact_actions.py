"""The action that is executed is the action that was written, all the way from an expert file to a rollout."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import terminal
from support.episodes import Episodes, executed
from support.prompts import BARE_FORM

from verl_ee.config import CollectConfig, EnvironmentConfig
from verl_ee.experience.collecting.collection import Collection
from verl_ee.experience.expert_files import load_experts, write_experts
from verl_ee.experience.proposers import Proposal, ProposalBatch, ProposalRequest
from verl_ee.experience.store import read_branches
from verl_ee.objectives.examples import encode
from verl_ee.objectives.rows import imitation_rows, world_model_rows
from verl_ee.trainer.rollout.tokens import encoder_for

EXPERT = [
    "SELECT name FROM t WHERE city = 'Bob'",
    "cd ..",
    'echo  "a  b"',
    "for name in names:\n    print(name)",
    "'quoted'",
    "A full stop. ",
]
OTHERS = [
    "SELECT name FROM t WHERE city = Bob",
    "cd .",
    'echo "a b"',
    "for name in names:\n  print(name)",
    "quoted",
    "A full stop",
]
"""Alternatives that differ from the expert's actions in quotes, full stops and spaces alone."""


class Other:
    """Proposes the alternative of each state."""

    window = 8

    def propose(self, requests: list[ProposalRequest]) -> ProposalBatch:
        alternatives = [(Proposal(OTHERS[request.ref.step], "policy"),) for request in requests]
        return ProposalBatch(tuple(alternatives))


@pytest.mark.usefixtures("cluster")
def test_actions_are_equal_byte_for_byte_from_the_expert_file_to_the_rollout(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write_experts(tmp_path / "experts.jsonl", [terminal.expert(EXPERT, log)])
    experts = load_experts(tmp_path / "experts.jsonl")
    assert [step.action for step in experts.trajectories[0].steps] == EXPERT

    environment = EnvironmentConfig(id=terminal.ID, kwargs={"log": str(log)})
    config = CollectConfig(alternatives="policy", k=1, workers=1, restore="replay")
    collection = Collection(tmp_path / "store", experts.trajectories, environment, config, {})
    collection.run(Other(), quiet=True)
    assert set(terminal.executed(log)) == {*EXPERT, *OTHERS}
    branches = read_branches(tmp_path / "store")
    stored = [(branch.outcome.action, branch.outcome.observation) for branch in branches]
    written = [action for pair in zip(EXPERT, OTHERS, strict=True) for action in pair]
    assert stored == [(action, f"{len(action.encode())} bytes") for action in written]

    episodes = Episodes(terminal.ID, {"log": str(log)})
    encoder = encoder_for(episodes.tokenizer, "qwen2", {})
    examples = list(encode(imitation_rows(experts.trajectories, 8, BARE_FORM), encoder))
    responses = [episodes.tokenizer.decode(example.target, skip_special_tokens=True) for example in examples]
    predicted = encode(world_model_rows(experts.trajectories, branches, 8, BARE_FORM), encoder)
    for branch, example in zip(branches, predicted, strict=True):
        assert f"Action: {branch.outcome.action}" in episodes.tokenizer.decode(example.prompt)

    log.unlink()
    (outputs,) = episodes.play(responses)
    # White space around an action is nothing.
    assert terminal.executed(log) == [action.strip() for action in EXPERT]
    assert executed(outputs) == [action.strip() for action in EXPERT]
    shown = episodes.prompts[-1]
    assert all(f"> {action.strip()}\n" in shown for action in EXPERT[:-1])
