"""Episodes of GRPO and evaluation: what is executed, shown and scored, and environments that fail."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from support.episode_games import MISHAPS_ID, THREAD_BOUND_ID
from support.episodes import VERSIONS, Episodes, executed, info_of, made
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

WIN = "Action: win"


def world(marks: Path, *, told: bool = True, noisy: bool = False, **keys: float | str) -> Episodes:
    return Episodes(MISHAPS_ID, {"marks": marks, "told": told, "noisy": noisy}, **keys)


def test_an_episode_is_one_output_per_turn_and_a_score_at_its_end(tmp_path: Path) -> None:
    episodes = world(tmp_path)
    (outputs,) = episodes.play(["Action: go", "I wait.", WIN])
    assert [episodes.text(output) for output in outputs] == ["Action: go", "I wait.", WIN]
    assert [output.response_mask for output in outputs] == [[1] * len(output.response_ids) for output in outputs]
    assert [output.reward_score for output in outputs] == [None, None, 1.0]
    assert [output.num_turns for output in outputs] == [6, 6, 6]
    assert info_of(outputs) == {
        **{"task": "a task", "acc": 1.0, "turns": 3, "no_action": pytest.approx(1 / 3), "refused": 0.0},
        **{"over_length": 0, "env_failed": 0, "env_error": ""},
    }
    assert "Task: Do it.\nTask a task, seed None" in episodes.prompts[0]


def test_a_task_begins_with_the_seed_of_its_row(tmp_path: Path) -> None:
    episodes = world(tmp_path)
    episodes.play([WIN], task="a box", seed=numpy.int64(5))
    assert "Task a box, seed 5, " in episodes.prompts[0]


@pytest.mark.parametrize("action", ['SELECT "a  b"  FROM t.', "cd ..", "for i in x:\n    print(i)"])
def test_the_action_is_executed_and_shown_as_it_was_written(tmp_path: Path, action: str) -> None:
    episodes = world(tmp_path)
    (outputs,) = episodes.play([f"I think.\nAction: {action}", WIN])
    assert executed(outputs) == [action, "win"]
    assert f"> {action}\nYou did {action!r}." in episodes.prompts[1]


def test_the_outputs_of_an_episode_make_a_batch_of_verl(tmp_path: Path) -> None:
    first, second = world(tmp_path).play(["Action: go", WIN], ["Action: fail"])
    batch = list_of_dict_to_tensordict([output.as_dict() for output in [*first, *second]])
    assert [extra["executed_actions"] for extra in batch.pop("extra_fields").tolist()] == [["go"], ["win"], ["fail"]]


def test_the_score_is_the_last_reward_or_the_sum_of_all(tmp_path: Path) -> None:
    responses = ["Action: earn 0.5", "Action: earn 0.25", "Action: earn 0"] * 2
    for key, score in {"last": 0.0, "sum": 1.5}.items():
        (outputs,) = world(tmp_path, episode_reward=key).play(responses)
        assert outputs[-1].reward_score == score
        assert info_of(outputs)["acc"] == 0.0


@pytest.mark.parametrize(("last", "solved"), [("earn 0", 0.0), ("win", 1.0)])
def test_an_environment_that_does_not_say_it_rewards_the_step_that_solves_its_task(
    tmp_path: Path, last: str, solved: float
) -> None:
    responses = [*["Action: earn 0.5"] * 5, f"Action: {last}"]
    (outputs,) = world(tmp_path, told=False, episode_reward="sum").play(responses)
    assert (outputs[-1].reward_score, info_of(outputs)["acc"]) == (2.5 + solved, solved)


def test_an_environment_that_does_not_say_its_task_gets_the_instruction_of_the_row(tmp_path: Path) -> None:
    episodes = world(tmp_path, told=False)
    episodes.play([WIN], instruction="Climb the tower.")
    assert "Task: Climb the tower.\nTask a task" in episodes.prompts[0]
    for missing in ({}, {"instruction": None}):
        episodes.play([WIN], **missing)
        assert "Task: " not in episodes.prompts[0]
    told = world(tmp_path)
    told.play([WIN], instruction="Climb the tower.")
    assert "Task: Do it.\n" in told.prompts[0]


def test_an_environment_may_print_and_put_anything_into_its_info(tmp_path: Path) -> None:
    episodes = world(tmp_path, noisy=True)
    (outputs,) = episodes.play(["Action: go", WIN])
    assert (outputs[-1].reward_score, info_of(outputs)["env_failed"]) == (1.0, 0)
    assert "You did 'go'." in episodes.prompts[1]


def test_an_environment_may_be_bound_to_a_thread() -> None:
    episodes = Episodes(THREAD_BOUND_ID)
    for _ in range(2):
        for outputs in episodes.play(*[["Action: a", "Action: b", "Action: c"]] * 3):
            assert (info_of(outputs)["env_error"], outputs[-1].reward_score) == ("", 3.0)
        assert "[('a',), ('b',)]" in episodes.prompts[2]


FAILURES = {
    "fail": "the action 'fail': ValueError: the floor gave way",
    "hang": "the action 'hang' took longer than early_experience.step_timeout=3 s",
    "compute": "the action 'compute' took longer than early_experience.step_timeout=3 s",
    "leave": "the action 'leave': the process of the environment ended (exit status 3)",
    "interrupt": "the action 'interrupt': the process of the environment ended (exit status 4)",
    "kill": "the action 'kill': the process of the environment ended (SIGKILL)",
    "bytes": "the action 'bytes': TypeError: the observation is bytes, expected str",
    "half a letter": "the action 'half a letter': UnicodeEncodeError: ",
}


@pytest.mark.parametrize("action", FAILURES)
def test_an_environment_that_fails_costs_one_episode(tmp_path: Path, action: str) -> None:
    limit = {"step_timeout": 3.0} if action in ("hang", "compute") else {}
    episodes = world(tmp_path, episode_reward="sum", **limit)
    failed, other = episodes.play(
        ["Action: earn 0.5", "I wait.", f"Action: {action}"], ["Action: a", "Action: b", "Action: c", WIN]
    )
    assert (other[-1].reward_score, info_of(other)["env_failed"]) == (1.0, 0)
    assert executed(failed) == ["earn 0.5", "I wait.", action]
    assert [output.response_mask for output in failed] == [[0] * len(output.response_ids) for output in failed]
    assert failed[-1].reward_score == 0.0
    info = info_of(failed)
    assert info.pop("env_error").startswith(FAILURES[action])
    assert info == {
        **{"task": "a task", "acc": 0.0, "turns": 3, "no_action": pytest.approx(1 / 3), "refused": 0.0},
        **{"over_length": 0, "env_failed": 1},
    }


def test_an_environment_that_works_is_lent_again_and_one_that_failed_is_not(tmp_path: Path) -> None:
    episodes = world(tmp_path)
    for response in (WIN, WIN, "Action: fail", WIN, WIN, "Action: leave", WIN):
        episodes.play([response])
    first, second, third = made(tmp_path)
    assert len({first, second, third}) == 3


@pytest.mark.parametrize("mishap", ["fail", "leave", "hang"])
def test_an_environment_that_fails_at_its_start_is_replaced_once(
    tmp_path: Path, mishap: str, capfd: pytest.CaptureFixture[str]
) -> None:
    episodes = world(tmp_path, **{"start_timeout": 5.0} if mishap == "hang" else {})
    episodes.play([WIN])
    (outputs,) = episodes.play([WIN], task=f"{mishap} 1")
    assert (outputs[-1].reward_score, info_of(outputs)["env_failed"]) == (1.0, 0)
    assert len(made(tmp_path)) == 2
    assert f"reset to task '{mishap} 1'" in capfd.readouterr().err


def test_an_episode_that_never_begins_has_one_output_from_which_nothing_is_learned(tmp_path: Path) -> None:
    episodes = world(tmp_path)
    ((output,),) = episodes.play([], task="fail", instruction="Climb the tower.")
    assert "Task: Climb the tower." in episodes.prompts[0]
    assert output.response_mask == [0]
    assert (len(output.response_ids), output.response_logprobs) == (1, [-0.5])
    assert output.extra_fields.items() >= VERSIONS.items()
    info = info_of([output])
    assert (output.reward_score, info["acc"], info["turns"], info["no_action"]) == (0.0, 0.0, 0, 0.0)
    assert (info["env_failed"], info["env_error"]) == (1, "reset to task 'fail': ValueError: the floor gave way")


def test_an_environment_that_cannot_be_made_is_counted(tmp_path: Path) -> None:
    ((output,),) = world(tmp_path / "missing").play([])
    assert "making it: " in info_of([output])["env_error"]
    assert "FileNotFoundError" in info_of([output])["env_error"]


def test_a_worker_has_its_share_of_what_the_servers_work_on(tmp_path: Path) -> None:
    episodes = world(tmp_path)
    trainer, rollout = episodes.config.trainer, episodes.config.actor_rollout_ref.rollout
    trainer.n_gpus_per_node, rollout.tensor_model_parallel_size = 2, 2
    # One server works on 3 sequences at a time, and 4 workers keep twice as many under way.
    rollout.max_num_seqs, rollout.agent.num_workers = 3, 4
    assert [outputs[-1].reward_score for outputs in episodes.play(*[["Action: go", WIN]] * 6)] == [1.0] * 6
    assert len(made(tmp_path)) == 2


def test_environments_draw_different_numbers(tmp_path: Path) -> None:
    episodes = world(tmp_path)
    episodes.play([WIN], [WIN], [WIN])
    assert len(made(tmp_path)) == 3
    assert len(set(episodes.prompts)) == 3
