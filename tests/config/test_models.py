"""The keys under `early_experience`: what is shipped parses, a wrong key is told with its value and what is allowed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from verl_ee.config import parse
from verl_ee.config.group import FOLDER, compose, names, store
from verl_ee.errors import ConfigError, EarlyExperienceError

ADDED = {
    "trainer.v1.trainer_mode": "early_experience",
    "ray_kwargs.ray_init.runtime_env.env_vars.VERL_EE": "1",
    "hydra.callbacks.early_experience._target_": "verl_ee.trainer.hydra_callback.FlagCallback",
}
REQUIRED = {"environment.id": "verl_ee/Household-v0", "experts": "experts.jsonl"}
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def keys_of(name: str) -> dict[str, Any]:
    """What a shipped value of the flag gives, with the required keys filled in."""
    config = compose(name).early_experience
    for key, value in REQUIRED.items():
        OmegaConf.update(config, key, value)
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key."""
    result = {}
    for key, value in node.items():
        inner = isinstance(value, Mapping) and value
        result |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return result


def changed(key: str, value: Any, name: str = "iwm") -> dict[str, Any]:
    """The keys of `name`, one of them set."""
    keys = copy.deepcopy(keys_of(name))
    node = keys
    *path, last = key.split(".")
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    return keys


def parses_without(keys: Mapping[str, Any], key: str) -> object:
    """What is parsed if one key is left out, or None if it is required."""
    rest: dict[str, Any] = copy.deepcopy(dict(keys))
    node = rest
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    del node[last]
    try:
        return parse(rest)
    except ConfigError:
        return None


def refusal(keys: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as raised:
        parse(keys)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    return str(raised.value)


def test_the_flag_takes_what_is_shipped() -> None:
    assert names() == SHIPPED
    assert {"imitation", "iwm"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_parses_and_holds_only_what_differs_from_a_default(name: str) -> None:
    keys = keys_of(name)
    config = parse(keys)
    assert config.method == name
    assert list(config.stages) == list(keys["stages"])
    whole = flat(config.model_dump(mode="json"))
    for key, value in flat(keys).items():
        if value == {}:
            # A set of branches with nothing but defaults.
            continue
        assert whole[key] == value
        assert parses_without(keys, key) != config


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("iwm", "collect.world_model.k", 8),
        ("sr", "collect.reflection.k", 3),
        ("sr", "collect.reflection.alternatives", "policy"),
        ("sr", "collect.reflection.unlisted", "replace"),
        ("iwm_sr", "stages.reflection.epochs", 2),
        ("imitation", "history_length", 8),
        ("imitation", "max_turns", 30),
        ("imitation", "save_freq", 500),
        ("iwm", "world_model.budget", "full"),
        ("sr", "reflection.min_accepted", None),
        ("sr", "reflection.writer", "policy"),
        ("iwm", "hand_over.reference", "mid_trained"),
    ],
)
def test_what_is_shipped_has_the_settings_that_its_page_promises(name: str, key: str, value: object) -> None:
    assert flat(parse(keys_of(name)).model_dump(mode="json"))[key] == value


@pytest.mark.parametrize("name", SHIPPED)
def test_only_what_is_required_is_left_open(name: str) -> None:
    open_keys = OmegaConf.missing_keys(OmegaConf.load(FOLDER / f"{name}.yaml"))
    assert open_keys == set(REQUIRED)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_flag_adds_nothing_else_to_a_job(name: str) -> None:
    config = OmegaConf.to_container(compose(name))
    assert isinstance(config, dict)
    own = config.pop("early_experience")
    assert own == OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    assert flat(config) == ADDED


def test_an_objective_that_does_not_exist_is_refused() -> None:
    message = refusal(changed("stages.imitation.objectives", ["imitate"]))
    assert len(message.splitlines()) == 1
    for words in ("early_experience.stages.imitation.objectives.0='imitate'", "'world_model'", "'reflection'"):
        assert words in message


def test_the_stages_of_the_world_model_method() -> None:
    config = parse(keys_of("iwm"))
    assert [stage.objectives for stage in config.stages.values()] == [("world_model",), ("imitation",)]
    assert {name: item.k for name, item in config.collect.items()} == {"world_model": 8}
    assert parse(keys_of("imitation")).collect == {}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("expert", "x.jsonl", ["Did you mean 'experts'", "history_length"]),
        ("zzz", None, ["Allowed: ", "max_turns", "stages"]),
        ("environment.kwarg", {}, ["Did you mean 'kwargs'"]),
        ("collect.world_model.alternative", "all", ["Did you mean 'alternatives'"]),
        ("collect.world_model.kk", 3, ["Did you mean 'k'", "workers"]),
        ("stages.imitation.epoch", 3, ["Did you mean 'epochs'", "batch_size"]),
        ("stages.world_model.learning_rate", 1e-5, ["Allowed: ", "lr"]),
        ("collect.world_model.k", -1, ["greater than or equal to 0"]),
        ("collect.world_model.k", -3, ["greater than or equal to 0"]),
        ("collect.world_model.k", "many", ["integer"]),
        ("collect.world_model.k", 2.5, ["integer"]),
        ("collect.world_model.k", None, ["integer"]),
        ("collect.world_model.workers", 0, ["greater than or equal to 1"]),
        ("collect.world_model.alternatives", "admisible", ["'admissible'"]),
        ("collect.world_model.max_mismatch", 1.5, ["less than or equal to 1"]),
        ("collect.world_model.max_mismatch", -0.1, ["greater than or equal to 0"]),
        ("collect.world_model.include_expert_transition", "perhaps", ["boolean"]),
        ("collect", 8, ["dictionary"]),
        ("environment", "verl_ee/Household-v0", ["dictionary"]),
        ("environment.kwargs", "small", ["dictionary"]),
        ("environment.id", 3, ["string"]),
        ("experts", ["a", "b"], ["string"]),
        ("max_experts", 0, ["greater than or equal to 1"]),
        ("history_length", -1, ["greater than or equal to 0"]),
        ("history_length", "all", ["integer"]),
        ("max_turns", 0, ["greater than or equal to 1"]),
        ("max_dropped", 2, ["less than or equal to 1"]),
        ("evaluate", "often", ["boolean"]),
        ("stages", ["imitation"], ["dictionary"]),
        ("stages.imitation", None, ["dictionary"]),
        ("stages.imitation.objectives", [], ["at least 1 item"]),
        ("stages.imitation.schedule", "linear", ["'constant'", "'cosine'"]),
        ("stages.imitation.epochs", 0, ["greater than or equal to 1"]),
        ("stages.imitation.lr", 0, ["greater than 0"]),
        ("stages.imitation.lr", "fast", ["number"]),
        ("stages.imitation.lr", float("nan"), ["greater than 0"]),
        ("stages.imitation.batch_size", 0, ["greater than or equal to 1"]),
        ("stages.imitation.warmup_ratio", 10, ["less than or equal to 1"]),
    ],
)
def test_a_wrong_key_is_told_with_its_value_and_what_is_allowed(key: str, value: Any, words: list[str]) -> None:
    message = refusal(changed(key, value))
    assert len(message.splitlines()) == 1
    for word in (f"early_experience.{key}={value!r}", *words):
        assert word in message


@pytest.mark.parametrize("key", sorted(REQUIRED))
def test_a_value_that_nobody_gave_is_asked_for(key: str) -> None:
    message = refusal(changed(key, "???"))
    assert f"early_experience.{key} has no value" in message
    assert f"early_experience.{key}=" in message


@pytest.mark.parametrize("key", ["method", "environment.id", "experts", "stages", "stages.imitation.lr"])
def test_a_key_that_is_not_there_is_asked_for(key: str) -> None:
    keys = keys_of("iwm")
    node: dict[str, Any] = keys
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    del node[last]
    assert f"early_experience.{key} has no value" in refusal(keys)


def test_all_problems_are_told_at_once() -> None:
    keys = changed("collect.world_model.k", -1) | {"max_turns": "x", "unknwon": 1}
    lines = refusal(keys).splitlines()
    assert len(lines) == 3
    for key in ("collect.world_model.k=-1", "max_turns='x'", "unknwon=1"):
        assert sum(f"early_experience.{key}" in line for line in lines) == 1


def test_a_world_model_without_branches_is_refused() -> None:
    message = refusal(changed("collect", {}))
    for word in (
        "early_experience.stages.world_model",
        "early_experience.world_model.collect='world_model'",
        "early_experience.collect.world_model.k",
    ):
        assert word in message


@pytest.mark.parametrize(("key", "limit"), [("reflection", "k"), ("world_model", "per_state")])
def test_a_choice_by_class_that_has_nothing_to_choose_is_refused(key: str, limit: str) -> None:
    keys = changed(f"{key}.balanced", True)
    assert f"early_experience.{key}.balanced=true" in refusal(keys)
    assert f"Set early_experience.{key}.{limit}" in refusal(keys)
    keys[key][limit] = 2
    parse(keys)


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 0.1),
        ({"writer": "template"}, 0.0),
        ({"writer": "mine"}, 0.1),
        ({"writer": "rule"}, 0.0),
        ({"min_accepted": 0.0}, 0.0),
        ({"writer": "template", "min_accepted": 0.7}, 0.7),
    ],
)
def test_the_rationales_of_a_language_model_must_pass_in_part_unless_a_job_says_otherwise(
    settings: dict[str, Any], share: float
) -> None:
    keys = changed("writers", {"mine": {"kind": "policy"}, "rule": {"kind": "template"}}, "sr")
    keys["reflection"] = settings
    assert parse(keys).min_accepted == share


def test_a_job_without_a_stage_is_refused() -> None:
    assert "early_experience.stages is empty" in refusal(changed("stages", {}))


def test_stages_keep_the_order_in_which_they_are_written() -> None:
    stage = keys_of("imitation")["stages"]["imitation"]
    order = ["z", "a", "m"]
    assert list(parse(changed("stages", dict.fromkeys(order, stage), "imitation")).stages) == order


def test_the_config_is_frozen() -> None:
    config = parse(keys_of("iwm"))
    parts: list[Any] = [config, config.environment, *config.collect.values(), *config.stages.values()]
    for part in parts:
        for field in type(part).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(part, field, getattr(part, field))
        with pytest.raises(ValidationError):
            part.another = 1


def test_parsing_neither_changes_nor_keeps_what_it_is_given() -> None:
    keys = keys_of("iwm")
    before = copy.deepcopy(keys)
    config = parse(keys)
    assert keys == before
    keys["stages"]["imitation"]["epochs"] = 99
    keys["stages"].clear()
    assert config == parse(before)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with the main config of some other program, which has a trainer mode of its own."""
    (tmp_path / "main.yaml").write_text("trainer: {v1: {trainer_mode: sync}}\nray_kwargs: {ray_init: {num_cpus: 2}}\n")
    return tmp_path


def composed(job: Path, *overrides: str) -> dict[str, Any]:
    store()
    with hydra.initialize_config_dir(str(job), version_base=None):
        config = hydra.compose("main", list(overrides))
    return OmegaConf.to_container(config)  # type: ignore[return-value]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_flag_composes_with_a_job_and_its_overrides(job: Path, name: str) -> None:
    plain = composed(job)
    assert flat(plain) == {"trainer.v1.trainer_mode": "sync", "ray_kwargs.ray_init.num_cpus": 2}
    stage = next(iter(compose(name).early_experience.stages))
    config = composed(
        job,
        f"+early_experience={name}",
        "early_experience.environment.id=verl_ee/Household-v0",
        "early_experience.experts=e.jsonl",
        f"early_experience.stages.{stage}.epochs=7",
    )
    assert parse(config.pop("early_experience")).stages[stage].epochs == 7
    added = {key: value for key, value in ADDED.items() if not key.startswith("hydra.")}
    assert flat(config) == flat(plain) | added


def test_a_mistyped_override_reaches_our_own_message(job: Path) -> None:
    given = [f"early_experience.{key}={value}" for key, value in REQUIRED.items()]
    config = composed(job, "+early_experience=iwm", *given, "early_experience.collect.world_model.kk=3")
    message = refusal(config["early_experience"])
    assert "early_experience.collect.world_model.kk=3" in message
    assert "Did you mean 'k'" in message


@pytest.mark.parametrize(
    ("key", "value", "now"),
    [
        ("collect.world_model.way", "fork", "early_experience.collect.world_model.restore"),
        ("collect.world_model.facts", "somewhere", "early_experience.collect.world_model.cache"),
        ("reflection.endpoint", {"url": "http://localhost"}, "early_experience.writers.<name>.endpoint"),
        ("reflection.temperature", 0.5, "early_experience.writers.<name>.temperature"),
        ("reflection.max_tokens", 64, "early_experience.writers.<name>.max_tokens"),
    ],
)
def test_an_old_key_is_refused_with_its_new_name(key: str, value: Any, now: str) -> None:
    message = refusal(changed(key, value))
    assert len(message.splitlines()) == 1
    assert message.startswith(f"early_experience.{key}={value!r} is an old key. It is now {now}")


def test_a_writer_is_chosen_by_its_name() -> None:
    server = {"kind": "endpoint", "endpoint": {"url": "http://localhost:1/v1", "model": "m"}, "max_tokens": 9}
    keys = changed("writers", {"judge": server}) | {"reflection": {"writer": "judge"}}
    config = parse(keys)
    writer = config.writer(config.reflection.writer)
    assert (writer.kind, writer.endpoint.model, writer.max_tokens, writer.temperature) == ("endpoint", "m", 9, 0.9)
    assert writer.key("endpoint.url") == "early_experience.writers.judge.endpoint.url"
    policy = config.writer(config.world_model.writer)
    assert (policy.kind, policy.max_tokens) == ("policy", 1024)
    assert policy.key("max_tokens") == "early_experience.writers.policy.max_tokens"


def test_a_writer_without_an_entry_has_the_defaults_of_its_kind_and_an_entry_replaces_them() -> None:
    config = parse(changed("writers", {"policy": {"kind": "policy", "temperature": 0.1}}))
    assert config.writer("policy").temperature == 0.1
    assert config.writer("template").kind == "template"


@pytest.mark.parametrize("key", ["writers", "collect"])
@pytest.mark.parametrize("name", ["../judge", "a/b", "gpt-4.1", "-judge", "", "zwei wörter"])
def test_a_name_that_cannot_be_part_of_a_path_is_refused(key: str, name: str) -> None:
    message = refusal(changed(key, {name: {"kind": "template"} if key == "writers" else {}}))
    assert f"early_experience.{key}: the name {name!r}" in message


def test_a_writer_may_be_named_after_its_model() -> None:
    server = {"kind": "endpoint", "endpoint": {"url": "http://localhost:1/v1", "model": "m"}}
    assert parse(changed("writers", {"gpt-4-1_mini": server})).writer("gpt-4-1_mini").kind == "endpoint"


def test_a_writer_that_nobody_described_is_refused() -> None:
    message = refusal(changed("reflection.writer", "gpt"))
    for words in ("early_experience.reflection.writer='gpt'", "policy, template", "early_experience.writers.gpt.kind"):
        assert words in message


def test_a_template_cannot_write_summaries() -> None:
    message = refusal(changed("world_model", {"target": "summary", "writer": "template"}))
    for words in ("early_experience.world_model.writer='template'", "kind=endpoint"):
        assert words in message


def test_a_config_error_is_one_of_ours() -> None:
    assert issubclass(ConfigError, EarlyExperienceError)
