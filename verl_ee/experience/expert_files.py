"""Expert files: JSON lines, one trajectory each, checked line by line. The schema is described in docs/data.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from verl_ee.config import ExpertsFilter
from verl_ee.envs import ExpertStep, ExpertTrajectory, arguments, version_of, without_module
from verl_ee.errors import EnvError, ExpertFileError
from verl_ee.experience.files.atomic import atomic
from verl_ee.experience.files.json_lines import JsonObject, Value, check_keys, check_schema, parse_object, typed_value

SCHEMA = "verl_ee.expert"
VERSION = 2
_KEYS = {"schema", "environment", "task", "seed", "instruction", "steps", "final_observation", "success"}
_STEP_KEYS = {"observation", "action", "thought", "admissible_actions", "solved"}
_check_keys = partial(check_keys, error=ExpertFileError)


@dataclass(frozen=True)
class ExpertFile:
    """The trajectories of an expert file that are used. The index of a trajectory counts these alone.

    Attributes:
        path: the file.
        sha256: hash of its bytes, hexadecimal.
        trajectories: the trajectories in their order, at least one.
        unsuccessful: number of trajectories that are left out because they did not solve their task.
        unplayable: trajectories that are left out because the environment does not show what they recorded; their
            indices among all that passed the filter.
    """

    path: Path
    sha256: str
    trajectories: tuple[ExpertTrajectory, ...]
    unsuccessful: int = 0
    unplayable: tuple[int, ...] = ()

    @property
    def chosen(self) -> int:
        """Number of trajectories that passed the filter and the limit, those that cannot be played included."""
        return len(self.trajectories) + len(self.unplayable)

    @property
    def filtered_line(self) -> str:
        """How many trajectories the filter left out, for a log; empty if it left out none."""
        if not self.unsuccessful:
            return ""
        read = self.chosen + self.unsuccessful
        return f"experts: {self.unsuccessful} of {read} trajectories did not solve their task and are left out"


def write_experts(path: Path, trajectories: Iterable[ExpertTrajectory]) -> int:
    """Write trajectories, atomically, and return their number."""
    count = 0
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for trajectory in trajectories:
            file.write(json.dumps(_to_json(trajectory), ensure_ascii=False) + "\n")
            count += 1
    return count


def load_experts(
    path: str | Path,
    environment: str | None = None,
    kwargs: Mapping[str, object] | None = None,
    limit: int | None = None,
    experts_filter: ExpertsFilter = "all",
) -> ExpertFile:
    """Read and check an expert file.

    Args:
        path: the file.
        environment: id that every line must name, if given; the installed version is compared as well. The module in
            front of an id makes no difference; the trajectories get this id.
        kwargs: environment arguments that every line must name, if given.
        limit: read until there are so many trajectories that pass the filter.
        experts_filter: `successful` leaves out trajectories that did not solve their task.

    Raises:
        ExpertFileError: with file, line, what is wrong and what to do.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExpertFileError(
            f"Expert file {str(path)!r} cannot be read ({error.strerror}). Name an existing file, or record one with "
            "`verl-ee experts record`."
        ) from None
    lines = content.split(b"\n")
    trajectories, unsuccessful = list[ExpertTrajectory](), 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        trajectory = _parse_line(line, f"{path}, line {number}", closed=number < len(lines))
        if environment is not None:
            trajectory = _in_environment(trajectory, environment, kwargs or {}, f"{path}, line {number}")
        if experts_filter == "successful" and not trajectory.success:
            unsuccessful += 1
            continue
        trajectories.append(trajectory)
        if limit is not None and len(trajectories) == limit:
            break
    if not trajectories:
        raise _nothing(path, unsuccessful)
    return ExpertFile(path, hashlib.sha256(content).hexdigest(), tuple(trajectories), unsuccessful)


def _nothing(path: Path, unsuccessful: int) -> ExpertFileError:
    if not unsuccessful:
        return ExpertFileError(
            f"Expert file {str(path)!r} holds no trajectory. Record one with `verl-ee experts record`."
        )
    return ExpertFileError(
        f"Expert file {str(path)!r}: 'success' is false in all {unsuccessful} trajectories, so "
        "early_experience.experts_filter=successful leaves none. Use early_experience.experts_filter=all (a command: "
        "--experts-filter all), or correct 'success' in the file (`verl-ee import` has --success)."
    )


def _to_json(trajectory: ExpertTrajectory) -> JsonObject:
    return {
        "schema": f"{SCHEMA}/{VERSION}",
        "environment": {
            "id": trajectory.environment,
            "version": trajectory.version,
            "kwargs": dict(trajectory.kwargs),
        },
        "task": trajectory.task,
        "seed": trajectory.seed,
        "instruction": trajectory.instruction,
        "success": trajectory.success,
        "steps": [asdict(step) for step in trajectory.steps],
        "final_observation": trajectory.final_observation,
    }


def _parse_line(line: bytes, where: str, closed: bool) -> ExpertTrajectory:
    row = parse_object(line, where, closed, ExpertFileError, "Record it again.")
    check_schema(row, SCHEMA, VERSION, where, ExpertFileError)
    _check_keys(row, _KEYS, where)
    in_environment = f"{where}, environment"
    environment = _typed(row, "environment", dict, where)
    _check_keys(environment, {"id", "version", "kwargs"}, in_environment)
    kwargs = {} if environment.get("kwargs") is None else _typed(environment, "kwargs", dict, in_environment)
    steps = _typed(row, "steps", list, where)
    if not steps:
        raise ExpertFileError(f"{where}: 'steps' is empty; a trajectory has at least one step.")
    return ExpertTrajectory(
        environment=_typed(environment, "id", str, in_environment),
        version=str(environment.get("version", "")),
        kwargs=kwargs,
        task=_typed(row, "task", str, where),
        seed=_optional(row, "seed", int, where),
        instruction=_optional(row, "instruction", str, where),
        steps=tuple(_parse_step(step, f"{where}, step {index}") for index, step in enumerate(steps)),
        final_observation=_optional(row, "final_observation", str, where),
        success=_typed(row, "success", bool, where),
    )


def _parse_step(step: object, where: str) -> ExpertStep:
    if not isinstance(step, dict):
        raise ExpertFileError(f"{where}: expected a JSON object, found {type(step).__name__}.")
    _check_keys(step, _STEP_KEYS, where)
    admissible = step.get("admissible_actions")
    if admissible is not None and not _is_list_of_text(admissible):
        raise ExpertFileError(f"{where}: 'admissible_actions' must be null or a list of strings.")
    thought = step.get("thought")
    if thought is not None and not isinstance(thought, str):
        raise ExpertFileError(f"{where}: 'thought' must be null or a string, found {type(thought).__name__}.")
    return ExpertStep(
        observation=_typed(step, "observation", str, where),
        action=_typed(step, "action", str, where),
        thought=thought,
        admissible_actions=None if admissible is None else tuple(admissible),
        solved=_optional(step, "solved", bool, where),
    )


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _typed(item: Mapping[str, object], key: str, kind: type[Value], where: str) -> Value:
    return typed_value(item, key, kind, where, ExpertFileError)


def _optional(item: Mapping[str, object], key: str, kind: type[Value], where: str) -> Value | None:
    """Return the value of a key that may be null or missing."""
    return None if item.get(key) is None else _typed(item, key, kind, where)


def _in_environment(
    trajectory: ExpertTrajectory, environment: str, kwargs: Mapping[str, object], where: str
) -> ExpertTrajectory:
    """Return a trajectory under the id of an environment, if it was recorded in it."""
    if without_module(trajectory.environment) != without_module(environment):
        raise ExpertFileError(
            f"{where}: recorded in {trajectory.environment!r}, but early_experience.environment.id is {environment!r}. "
            "Use the environment of the file, or another file."
        )
    installed = _installed_version(environment, trajectory.environment, where)
    if trajectory.version != installed:
        raise ExpertFileError(
            f"{where}: recorded in version {trajectory.version} of {environment}; version {installed} is installed. "
            "Record it again."
        )
    expected = arguments(environment, kwargs)
    try:
        recorded = arguments(environment, trajectory.kwargs)
    except EnvError as error:
        raise ExpertFileError(f"{where}: {error}") from None
    if recorded != expected:
        raise ExpertFileError(
            f"{where}: recorded with environment arguments {recorded}, but early_experience.environment.kwargs gives "
            f"{expected}. Use the same."
        )
    return replace(trajectory, environment=environment)


def _installed_version(environment: str, recorded_in: str, where: str) -> str:
    try:
        return version_of(environment)
    except EnvError:
        if ":" not in recorded_in or ":" in environment:
            raise
        raise ExpertFileError(
            f"{where}: recorded in {recorded_in!r}, whose module registers it; {environment!r} does not name the "
            f"module, so no other process would find the environment. Use {recorded_in!r}."
        ) from None
