"""Reflection: what a writer is shown, what an example holds, what a rationale rests on, and rationales on disk."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from collected import write_here

from verl_ee.envs import ExpertStep, ExpertTrajectory
from verl_ee.envs.household.env import Household
from verl_ee.errors import ExampleError, StoreError
from verl_ee.experience.rendering import (
    POLICY_SYSTEM,
    WORLD_MODEL_SYSTEM,
    Message,
    State,
    Turn,
    canonical,
    parse_response,
    render_policy,
    state_text,
)
from verl_ee.experience.states import expert_states
from verl_ee.experience.store import TRANSITION_SCHEMA, TRANSITIONS, Outcome, read_outcomes, read_table
from verl_ee.objectives import texts as module
from verl_ee.objectives.examples import Encoder, Example, imitation, reflection, world_model
from verl_ee.objectives.gates import GATES
from verl_ee.objectives.rationales import FILE, read_all, write_all
from verl_ee.objectives.reflection import (
    Reflection,
    Situation,
    TemplateWriter,
    counts,
    reflect,
    situations,
    writer_prompt,
)

HISTORY = 8
TASKS = [f"{split}/{number}" for split in ("train", "seen", "unseen") for number in range(8)]
GOOD = "The task is clear to me, and this brings it a little further."


@dataclass(frozen=True)
class Branched:
    """Expert trajectories, and the store of what was executed at their states."""

    folder: Path
    trajectories: list[ExpertTrajectory]
    outcomes: list[Outcome]


@pytest.fixture(scope="module")
def household(tmp_path_factory: pytest.TempPathFactory) -> Branched:
    """Households of every split, three alternatives in each state."""
    folder = tmp_path_factory.mktemp("store")
    trajectories = [Household().expert_trajectory(task) for task in TASKS]
    write_here(folder, Household, trajectories, 3)
    return Branched(folder, trajectories, read_outcomes(folder))


@dataclass
class Recorder:
    """Encodes nothing, and keeps what it was given."""

    prompts: list[list[Message]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    def prompt(self, messages: list[Message]) -> list[int]:
        self.prompts.append(list(messages))
        return [1]

    def target(self, text: str) -> list[int]:
        self.targets.append(text)
        return [2]

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.prompt, self.target)

    @property
    def contents(self) -> list[str]:
        """All that was read, prompt by prompt."""
        return ["\n".join(f"{message['role']}:{message['content']}" for message in prompt) for prompt in self.prompts]


class Scripted:
    """A writer of given texts, which repeat; it can die or stop, and it remembers what it was asked.

    Args:
        texts: what it writes.
        dies_at: calls after which it raises.
        stops_at: situations after which it writes no more.
    """

    name = "scripted"

    def __init__(self, *texts: str, dies_at: int | None = None, stops_at: int | None = None) -> None:
        self.texts, self.dies_at, self.stops_at = texts, dies_at, stops_at
        self.asked: list[tuple[int, int]] = []
        self.calls = 0
        self.stop: ExampleError | None = None

    def write(self, found: Sequence[Situation]) -> Sequence[str | None]:
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        return [self._one(item) for item in found]

    def _one(self, item: Situation) -> str | None:
        if len(self.asked) == self.stops_at:
            self.stop = ExampleError("That is enough.")
            return None
        self.asked.append((item.trajectory, item.step))
        return self.texts[item.step % len(self.texts)]


def outcome(action: str, observation: str = "Nothing happens.", proposer: str = "policy", **values: object) -> Outcome:
    given = {"trajectory": 0, "step": 0, "valid": True, "done": False, "transition": f"key of {action}"} | values
    return Outcome(action=action, observation=observation, proposer=proposer, **given)  # type: ignore[arg-type]


def trajectory(*actions: str, listed: bool = False) -> ExpertTrajectory:
    """An expert in a world of its own, which says what was done so far."""
    steps = tuple(
        ExpertStep(f"Room {number}.", action, f"I think {number}.", (action, "sit down") if listed else None)
        for number, action in enumerate(actions)
    )
    return ExpertTrajectory("test/World", "1", "task 0", "Leave the house.", steps, "Garden.", True)


def situation(state: State, expert: Outcome, *others: Outcome) -> Situation:
    return Situation(0, 0, state, expert.action, expert, others)


def written(found: Situation) -> str:
    (text,) = TemplateWriter().write([found])
    return text


def prompts_of(examples: Sequence[Example], recorder: Recorder) -> list[str]:
    assert len(examples) == len(recorder.prompts) == len(recorder.targets)
    return recorder.contents


# What a writer is shown


def test_the_expert_s_own_action_is_never_among_the_alternatives(household: Branched) -> None:
    found = situations(household.trajectories, household.outcomes, HISTORY)
    assert len(found) == sum(len(item.steps) for item in household.trajectories)
    for item in found:
        assert item.action == household.trajectories[item.trajectory].steps[item.step].action
        assert item.outcome.action == item.action
        assert len(item.alternatives) == 3
        assert canonical(item.action) not in {canonical(other.action) for other in item.alternatives}


def test_an_alternative_that_is_the_expert_s_action_in_other_clothes_is_left_out() -> None:
    clothes = ["'open door'", " open   door.", '"open door."', "open door", "`open door`"]
    branches = [outcome("open door", proposer="expert"), *map(outcome, clothes), outcome("open window")]
    (found,) = situations([trajectory("open door")], branches, HISTORY)
    assert [other.action for other in found.alternatives] == ["open window"]
    # What is left out takes no place of the K.
    (found,) = situations([trajectory("open door")], branches, HISTORY, k=1)
    assert [other.action for other in found.alternatives] == ["open window"]


@pytest.mark.parametrize("k", [0, 1, 2, 3, 9, None])
def test_at_most_k_alternatives_are_shown_and_they_are_the_first(household: Branched, k: int | None) -> None:
    for item in situations(household.trajectories, household.outcomes, HISTORY, k):
        place = (item.trajectory, item.step)
        here = [branch for branch in household.outcomes if (branch.trajectory, branch.step) == place]
        others = [branch for branch in here if branch.proposer != "expert"]
        assert list(item.alternatives) == (others if k is None else others[:k])
        assert item.transitions == (here[0].transition, *(other.transition for other in item.alternatives))


def test_a_state_without_the_expert_s_outcome_is_left_out_and_none_at_all_is_refused(household: Branched) -> None:
    lost = [branch for branch in household.outcomes if (branch.proposer, branch.step) != ("expert", 1)]
    found = situations(household.trajectories, lost, HISTORY)
    assert {item.step for item in found} == {branch.step for branch in household.outcomes} - {1}
    alone = [branch for branch in household.outcomes if branch.proposer != "expert"]
    with pytest.raises(ExampleError, match="include_expert_transition=true"):
        situations(household.trajectories, alone, HISTORY)


LEADING = r"expert|alternative|correct|right|best|optimal|chosen|selected|option|label|\bA\b\)"


def test_the_prompt_of_a_writer_holds_what_was_executed_and_no_word_that_leads_to_a_leak(household: Branched) -> None:
    for item in situations(household.trajectories, household.outcomes, HISTORY):
        system, user = writer_prompt(item)
        assert (system["role"], user["role"]) == ("system", "user")
        text = f"{system['content']}\n{user['content']}"
        assert not re.search(LEADING, text, re.IGNORECASE)
        # A list that is numbered, or marked by points, is copied.
        assert not re.search(r"(?m)^\s*(?:\(?\d+[.):]|[-*\u2022])\s", text)
        assert not re.search(r"(?i)\b(?:action|choice) \d", text)
        assert user["content"].startswith(state_text(item.state))
        shown = user["content"].removeprefix(state_text(item.state)).splitlines()
        told = [f"{other.action}: {other.observation}" for other in item.alternatives]
        assert [line for line in shown if line in told] == told
        assert any(line.endswith(f": {item.action}") for line in shown)
        for line in shown:
            # Every line with an outcome, or the line above the list, says that it is not to be told.
            if line.endswith(item.outcome.observation) and line not in told:
                assert "not to be told" in line


def test_without_alternatives_the_prompt_of_a_writer_has_the_expert_s_outcome_alone(household: Branched) -> None:
    (item, *_) = situations(household.trajectories, household.outcomes, HISTORY, 0)
    text = writer_prompt(item)[1]["content"]
    assert text.count("not to be told") == 1
    assert item.outcome.observation in text
    assert "what else" not in text


# What an example holds


def test_no_alternative_and_no_outcome_is_in_the_input_of_a_reflection() -> None:
    expert = trajectory("open door", "walk out")
    branches = [
        outcome("open door", "OUTCOME one", "expert"),
        outcome("ALTERNATIVE one", "OUTCOME two"),
        outcome("walk out", "OUTCOME three", "expert", step=1),
        outcome("ALTERNATIVE two", "OUTCOME four", step=1),
    ]
    reflections = reflect(situations([expert], branches, HISTORY), Scripted(f"ALTERNATIVE OUTCOME {GOOD}"), ())
    recorder = Recorder()
    read = prompts_of(list(reflection([expert], reflections, recorder.encoder, HISTORY)), recorder)
    assert len(read) == 2
    for text in read:
        assert "ALTERNATIVE" not in text
        assert "OUTCOME" not in text
        assert "RATIONALE" not in text
    # The words are there to be found: the targets have them.
    assert all("ALTERNATIVE OUTCOME" in target for target in recorder.targets)


def test_the_three_objectives_render_a_state_equally(household: Branched) -> None:
    reflections = reflect(situations(household.trajectories, household.outcomes, HISTORY), TemplateWriter())
    places = [(index, step) for index, item in enumerate(household.trajectories) for step in range(len(item.steps))]
    states = [expert_states(household.trajectories[index], HISTORY)[step] for index, step in places]
    imitated, reflected, modelled = Recorder(), Recorder(), Recorder()
    prompts_of(list(imitation(household.trajectories, imitated.encoder, HISTORY)), imitated)
    prompts_of(list(reflection(household.trajectories, reflections, reflected.encoder, HISTORY)), reflected)
    prompts_of(list(world_model(household.trajectories, household.outcomes, modelled.encoder, HISTORY)), modelled)
    assert imitated.prompts == [render_policy(state) for state in states]
    assert reflected.prompts == imitated.prompts
    by_place = dict(zip(places, states, strict=True))
    for branch, (system, user) in zip(household.outcomes, modelled.prompts, strict=True):
        shown = state_text(by_place[branch.trajectory, branch.step])
        assert user["content"] == f"{shown}\nAction: {branch.action}"
        assert render_policy(by_place[branch.trajectory, branch.step])[1]["content"] == shown
        assert system == {"role": "system", "content": WORLD_MODEL_SYSTEM}


def test_no_row_of_the_world_model_has_the_system_prompt_of_the_policy(household: Branched) -> None:
    recorder = Recorder()
    read = prompts_of(
        list(world_model(household.trajectories, household.outcomes, recorder.encoder, HISTORY)), recorder
    )
    assert POLICY_SYSTEM != WORLD_MODEL_SYSTEM
    assert not any(POLICY_SYSTEM in text for text in [*read, *recorder.targets])
    for branch, target in zip(household.outcomes, recorder.targets, strict=True):
        # A delimited target cannot be taken for an action.
        assert target == f"<observation> {branch.observation} </observation>"
        assert parse_response(target).action is None


TEXTS = [
    GOOD,
    f"  {GOOD}\n\n",
    f"{GOOD}\n{GOOD}",
    f"{GOOD}\nAction: dance",
    "Action: dance",
    f"Action: dance\nAction: sing\n{GOOD}",
    f"{GOOD} Action:",
    "<observation> Garden. </observation>",
    "<|im_end|> Bonjour \u00e7a va \U0001f600",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_target_is_the_rationale_and_then_the_expert_s_action_whatever_was_written(text: str) -> None:
    expert = trajectory("open door", "walk out")
    branches = [outcome(step.action, proposer="expert", step=number) for number, step in enumerate(expert.steps)]
    recorder = Recorder()
    reflections = reflect(situations([expert], branches, HISTORY), Scripted(text), ())
    examples = list(reflection([expert], reflections, recorder.encoder, HISTORY))
    assert [example.objective for example in examples] == ["reflection", "reflection"]
    for step, target in zip(expert.steps, recorder.targets, strict=True):
        assert target == (f"{text.strip()}\n" if text.strip() else "") + f"Action: {step.action}"
        assert parse_response(target).action == step.action
        # The expert's own thought is not mixed into a reflection.
        assert step.thought not in target


def test_only_accepted_rationales_become_examples() -> None:
    expert = trajectory("open door", "walk out", "close door")
    branches = [outcome(step.action, proposer="expert", step=number) for number, step in enumerate(expert.steps)]
    reflections = reflect(situations([expert], branches, HISTORY), Scripted(GOOD, "Too short.", f"Well, {GOOD}"))
    assert [item.gate for item in reflections] == ["", "length", ""]
    assert counts(reflections) == {"accepted": 2, "length": 1}
    recorder = Recorder()
    examples = list(reflection([expert], reflections, recorder.encoder, HISTORY))
    assert recorder.targets == [f"{GOOD}\nAction: open door", f"Well, {GOOD}\nAction: close door"]
    assert [example.provenance for example in examples] == [
        "trajectory 0, step 0, scripted",
        "trajectory 0, step 2, scripted",
    ]


@pytest.mark.parametrize("k", [0, 2, None])
def test_a_rationale_traces_to_transitions_that_were_executed(household: Branched, k: int | None) -> None:
    facts = {row["key"]: row for row in read_table(household.folder / TRANSITIONS, TRANSITION_SCHEMA)}
    reflections = reflect(situations(household.trajectories, household.outcomes, HISTORY, k), TemplateWriter())
    environment = Household()
    for item in reflections[::5]:
        expert = household.trajectories[item.trajectory]
        assert len(item.transitions) == 1 + (3 if k is None else k)
        assert facts[item.transitions[0]]["action"] == expert.steps[item.step].action
        for key in item.transitions:
            fact = facts[key]
            assert fact["task"] == expert.task
            assert fact["prefix"] == [step.action for step in expert.steps[: item.step]]
            # What the store says happens, happens.
            environment.reset(options={"task": fact["task"]})
            for action in fact["prefix"]:
                environment.step(action)
            assert environment.step(fact["action"])[0] == fact["observation"]


def test_a_writer_that_leaves_situations_out_is_refused(household: Branched) -> None:
    class Lazy(TemplateWriter):
        def write(self, situations: Sequence[Situation]) -> Sequence[str]:
            return super().write(situations)[:-1]

    found = situations(household.trajectories, household.outcomes, HISTORY)[:4]
    with pytest.raises(ExampleError, match=r"'template' gave 3 texts for 4 requests"):
        reflect(found, Lazy())


# What the rule writes


@pytest.mark.parametrize(("size", "k"), [("small", 0), ("small", 3), ("small", 8), ("medium", 3), ("large", 3)])
def test_what_the_rule_writes_about_households_passes_every_gate(size: str, k: int, tmp_path: Path) -> None:
    trajectories = [Household(size).expert_trajectory(task) for task in TASKS]
    write_here(tmp_path, lambda: Household(size), trajectories, max(k, 1))
    found = situations(trajectories, read_outcomes(tmp_path), HISTORY, k)
    reflections = reflect(found, TemplateWriter())
    assert [(item.gate, item.reason, item.text) for item in reflections if not item.accepted] == []
    assert len(reflections) == sum(len(item.steps) for item in trajectories)
    # A long rationale takes weight from the action, and has to fit into a response.
    assert max(len(item.text.split()) for item in reflections) <= 60


def test_what_the_rule_writes_differs_from_state_to_state(household: Branched) -> None:
    texts = written_all(household)
    assert len(set(texts)) > 0.9 * len(texts)
    frames = {
        re.sub(r"'[^']*'", "X", re.sub(r"(?<=I see )[\w, ]+(?= of)|(?<=to |th )[\w, ]+(?=\.)", "Y", text))
        for text in texts
    }
    assert len(frames) >= 25


def written_all(household: Branched) -> list[str]:
    return list(TemplateWriter().write(situations(household.trajectories, household.outcomes, HISTORY)))


def test_what_the_rule_writes_is_borne_out_by_what_was_executed(household: Branched) -> None:
    claims = 0
    for item in situations(household.trajectories, household.outcomes, HISTORY):
        by_action = {branch.action: branch for branch in (item.outcome, *item.alternatives)}
        task, now = words(item.state.task), words(item.state.observation)
        seen = {item.state.observation, *(turn.observation for turn in item.state.history)}
        first, *rest = sentences_of(written(item))
        # What is called seen is, and nothing that the task names is overlooked.
        assert words(first) & task == (task & now) | ({"task"} & task)
        for sentence in rest:
            (action,) = re.findall(r"^'([^']*)'", sentence)
            result, claim = by_action[action], sentence.removeprefix(f"'{action}' ")
            new = words(result.observation) & task - now
            if claim == "should end the task.":
                assert result.done
            elif claim == "would show nothing new.":
                assert result.observation in seen
            elif claim == "would add nothing to it.":
                assert not new
            elif claim == "can wait.":
                assert new
            elif claim.startswith("may bring me to "):
                assert words(claim) & task == new
            elif claim.startswith("should help with "):
                assert words(claim) & task == words(action) & task != set()
            elif claim == "may show me more.":
                assert result.observation not in seen
            elif claim == "should bring me on.":
                assert not new | (words(action) & task)
            else:
                raise AssertionError(sentence)
            claims += 1
        # It comes to rest on the expert's action.
        assert sentence.startswith(f"'{item.action}' ")
    assert claims > 500


def words(text: str) -> set[str]:
    """The words of a text that carry a meaning; the household has few others."""
    return set(re.findall(r"[a-z]{3,}", text.lower())) - {"and", "the", "under", "another", "you", "see", "nothing"}


def sentences_of(text: str) -> list[str]:
    return [f"{part}." for part in text.removesuffix(".").split(". ")]


def test_the_rule_says_why_each_kind_of_action_is_not_taken() -> None:
    state = State("find a coin", (Turn("A hall.", "go north"),), "A cellar with a chest.")
    expert = outcome("open chest", "In it is a coin.")
    refused, ending = outcome("fly", "You cannot.", valid=False), outcome("drink poison", "You die.", done=True)
    back, other, wanted = outcome("go south", "A hall."), outcome("sing", "La."), outcome("dig", "A coin!")
    expected = {
        refused: "'fly' would be refused.",
        ending: "'drink poison' would end it too early.",
        back: "'go south' would show nothing new.",
        other: "'sing' would add nothing to it.",
        wanted: "'dig' can wait.",
    }
    for alternative, sentence in expected.items():
        text = written(situation(state, expert, alternative))
        assert text == f"I see nothing of the task. {sentence} 'open chest' may bring me to coin."
    # Two kinds are enough, whatever else could be done; the first of each kind stands for it.
    text = written(situation(state, expert, other, outcome("hum", "Mm."), refused, back, ending, wanted))
    assert text == "I see nothing of the task. 'sing' would add nothing to it. 'fly' would be refused. " + (
        "'open chest' may bring me to coin."
    )


@pytest.mark.parametrize(
    ("action", "observation", "done", "sentence"),
    [
        ("open chest", "In it is a coin.", False, "'open chest' may bring me to coin."),
        ("open chest", "A coin, a gold one.", True, "'open chest' should end the task."),
        ("wait", "You win.", True, "'wait' should end the task."),
        ("light match", "It is bright.", False, "'light match' may show me more."),
        ("go back", "A hall.", False, "'go back' should bring me on."),
        ("look for gold", "You see dust.", False, "'look for gold' should help with gold."),
    ],
)
def test_the_rule_says_what_is_to_be_expected_of_the_expert_s_action(
    action: str, observation: str, done: bool, sentence: str
) -> None:
    state = State("find a gold coin", (Turn("A hall.", "go north"),), "A cellar, and gold paint in it.")
    text = written(situation(state, outcome(action, observation, "expert", done=done)))
    assert text == f"I see gold of the task. {sentence}"


# Rationales on disk


@pytest.fixture
def found(household: Branched) -> list[Situation]:
    """Twenty situations of several trajectories."""
    return situations(household.trajectories, household.outcomes, HISTORY)[:20]


def test_rejected_rationales_are_kept_beside_accepted_ones_with_their_reasons(
    found: list[Situation], tmp_path: Path
) -> None:
    texts = (GOOD, "Too short.", f"The best action comes now. {GOOD}", f"{GOOD} {GOOD}")
    written = write_all(tmp_path, found, Scripted(*texts), tuple(GATES), 0.0)
    assert written == read_all(tmp_path)
    assert [(item.trajectory, item.step) for item in written] == [(item.trajectory, item.step) for item in found]
    assert [item.transitions for item in written] == [item.transitions for item in found]
    for item in written:
        gate, reason = [
            ("", ""),
            ("length", "has 2 words, fewer than 8"),
            ("label_words", "names the label: 'best action'"),
            ("repeated", "repeats a sentence: 'the task is clear to me and this brings it a little further'"),
        ][item.step % 4]
        assert (item.text, item.writer) == (texts[item.step % 4], "scripted")
        assert (item.gate, item.reason, item.accepted) == (gate, reason, not gate)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE]


def test_gates_that_are_not_asked_reject_nothing(found: list[Situation], tmp_path: Path) -> None:
    text = "The best action."
    assert {item.gate for item in write_all(tmp_path / "all", found, Scripted(GOOD, text), tuple(GATES), 0.0)} == {
        "",
        "length",
    }
    assert {item.gate for item in write_all(tmp_path / "one", found, Scripted(GOOD, text), ("label_words",), 0.0)} == {
        "",
        "label_words",
    }
    assert {item.gate for item in write_all(tmp_path / "none", found, Scripted(GOOD, text), (), 0.0)} == {""}


def test_a_writer_that_was_killed_goes_on_and_writes_nothing_twice(
    found: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 6)
    places = [(item.trajectory, item.step) for item in found]
    first, second, third = Scripted(GOOD, "No.", dies_at=1), Scripted(GOOD, "No.", dies_at=2), Scripted(GOOD, "No.")
    for writer, asked in ((first, places[:6]), (second, places[6:18])):
        with pytest.raises(KeyboardInterrupt):
            write_all(tmp_path / "killed", found, writer, tuple(GATES), 0.0)
        assert writer.asked == asked
        # What is not whole does not look as if it were.
        with pytest.raises(StoreError, match="missing"):
            read_all(tmp_path / "killed")
    resumed = write_all(tmp_path / "killed", found, third, tuple(GATES), 0.0)
    assert third.asked == places[18:]
    straight = write_all(tmp_path / "straight", found, Scripted(GOOD, "No."), tuple(GATES), 0.0)
    assert resumed == straight
    assert (tmp_path / "killed" / FILE).read_bytes() == (tmp_path / "straight" / FILE).read_bytes()


def test_a_writer_that_stops_keeps_what_it_wrote_and_the_next_one_writes_the_rest(
    found: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 6)
    places = [(item.trajectory, item.step) for item in found]
    first, second = Scripted(GOOD, "No.", stops_at=9), Scripted(GOOD, "No.")
    with pytest.raises(ExampleError, match=r"That is enough\."):
        write_all(tmp_path, found, first, tuple(GATES), 0.0)
    assert first.asked == places[:9]
    # It is not asked again within the run.
    assert first.calls == 2
    written = write_all(tmp_path, found, second, tuple(GATES), 0.0)
    assert second.asked == places[9:]
    assert [(item.trajectory, item.step) for item in written] == places


def test_rationales_come_in_the_order_of_the_situations_whatever_was_written_first(
    found: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 5)
    with pytest.raises(KeyboardInterrupt):
        write_all(tmp_path, found[10:], Scripted(GOOD, dies_at=1), (), 0.0)
    writer = Scripted(GOOD)
    everything = write_all(tmp_path, found, writer, (), 0.0)
    assert [(item.trajectory, item.step) for item in everything] == [(item.trajectory, item.step) for item in found]
    assert len(writer.asked) == 15


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_enough_accepted_rationales_pass(found: list[Situation], tmp_path: Path, share: float) -> None:
    half = [replace(item, step=number) for number, item in enumerate(found)]
    assert counts(write_all(tmp_path, half, Scripted(GOOD, "No."), tuple(GATES), share)) == {
        "accepted": 10,
        "length": 10,
    }


@pytest.mark.parametrize(("texts", "share"), [((GOOD, "No."), 0.51), ((GOOD, "No."), 1.0), (("No.",), 0.0)])
def test_too_few_accepted_rationales_stop_the_run_and_all_of_them_are_on_disk(
    found: list[Situation], tmp_path: Path, texts: tuple[str, ...], share: float
) -> None:
    numbered = [replace(item, step=number) for number, item in enumerate(found)]
    with pytest.raises(ExampleError) as raised:
        write_all(tmp_path, numbered, Scripted(*texts), tuple(GATES), share)
    accepted = 10 if GOOD in texts else 0
    message = str(raised.value)
    for part in (
        f"{accepted} of 20",
        f"length {20 - accepted}",
        f"early_experience.reflection.min_accepted={share:g}",
        str(tmp_path / FILE),
        "it has 1 words, fewer than 8: 'No.'",
    ):
        assert part in message
    assert message.count("'No.'") == 3
    assert counts(read_all(tmp_path))["length"] == 20 - accepted


def test_the_file_keeps_every_character(tmp_path: Path, found: list[Situation]) -> None:
    text = 'Caf\u00e9 "au lait"\n\tand\r\n \u6c34 \U0001f600 <|im_end|> \\n'
    write_all(tmp_path, found[:1], Scripted(text), (), 0.0)
    (item,) = read_all(tmp_path)
    assert item == Reflection(found[0].trajectory, found[0].step, text, "scripted", found[0].transitions)
    # But for the white space around it, which a target does not have either.
    (judged,) = reflect(found[:1], Scripted(f"\n {text}  \n"), ())
    assert judged == item


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="missing"):
        read_all(tmp_path)
    (tmp_path / FILE).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(StoreError, match=FILE):
        read_all(tmp_path)
