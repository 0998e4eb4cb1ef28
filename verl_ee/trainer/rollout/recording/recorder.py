"""Demonstrations played through the job's own agent loops, whose outputs become the examples of imitation."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, AgentLoopWorker, _agent_loop_registry
from verl.trainer.ppo.utils import create_rl_dataset
from verl.workers.rollout.llm_server import LLMServerClient

from verl_ee.errors import ExampleFileError, did_you_mean
from verl_ee.experience.progress import plugin_logger
from verl_ee.objectives.examples import Example
from verl_ee.objectives.files.recordings import COLUMN, Recording, check_failures, read_responses
from verl_ee.prompts.format import Message
from verl_ee.trainer.protocols import SamplingParams
from verl_ee.trainer.rollout.environments.pool import close_pools
from verl_ee.trainer.rollout.recording.loop_answers import difference_line
from verl_ee.trainer.rollout.recording.recording_client import RecordingClient
from verl_ee.trainer.rollout.tokens import end_token

logger = plugin_logger(__name__)
AT_A_TIME = 16
"""Rows whose agent loops run at the same time, at most; GRPO runs many more."""
DatasetRow = dict[str, object]
"""A row of a verl dataset, as verl's data loader hands it to an agent loop."""


@dataclass(frozen=True)
class PlayedRow:
    """A demonstration that has been played.

    Attributes:
        outputs: outputs of the agent loop; empty if it failed.
        problem: why the row gives no example, or None.
    """

    outputs: Sequence[AgentLoopOutput]
    problem: str | None


class _Worker(AgentLoopWorker):
    """Runs agent loops as verl does, tools and registry included, and leaves their outputs as they are."""

    async def _agent_loop_postprocess(
        self, output: AgentLoopOutput | list[AgentLoopOutput], validate: bool, **_: object
    ) -> AgentLoopOutput | list[AgentLoopOutput]:
        return output

    def ends(self) -> set[int]:
        """Return the tokens that end a response: of the tokenizer, and of the model's generation config."""
        configured = getattr(self.model_config.generation_config, "eos_token_id", None)
        listed = configured if isinstance(configured, list) else [configured]
        return {int(token) for token in [self.tokenizer.eos_token_id, *listed] if token is not None}

    async def play(self, row: DatasetRow, responses: Sequence[str]) -> PlayedRow:
        """Run the agent loop of a row with the responses of its expert."""
        # Each row has a client of its own; tools and tokenizer are shared, as in verl.
        worker = copy.copy(self)
        worker.llm_client = client = RecordingClient(self.config, self.tokenizer, responses, self.ends())
        trajectory = {"step": 0, "sample_index": row.get("index", 0), "rollout_n": 0, "validate": False}
        try:
            output = await worker._run_agent_loop(self._sampling(), trajectory, trace=False, **row)
        except Exception as error:  # an agent loop, a tool of it or its constructor may raise anything
            reason = f"the agent loop raised {type(error).__name__}: {_first_line(error)}. Repair the row or the loop."
            return PlayedRow([], client.problem or reason)
        outputs = list(output) if isinstance(output, list) else [output]
        return PlayedRow(outputs, client.problem or self._problem_with(outputs, client.calls, len(responses)))

    def _sampling(self) -> SamplingParams:
        rollout = self.config.actor_rollout_ref.rollout
        return {
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            "top_k": rollout.top_k,
            "repetition_penalty": 1.0,
            "logprobs": rollout.calculate_log_probs,
        }

    def _problem_with(self, outputs: Sequence[AgentLoopOutput], calls: int, responses: int) -> str | None:
        """Return why the outputs of a row are not learned, or None."""
        for output in outputs:
            failure = output.extra_fields.get("reward_extra_info", {}).get("env_error")
            if failure:
                return f"the environment failed: {failure}. Repair the row or the environment."
        if calls < responses:
            return (
                f"the agent loop ended after {calls} of {responses} responses of the expert. Compare them with what "
                "ends the loop: an action, a response without a tool call, a limit of turns or of tokens."
            )
        for output in outputs:
            problem = self._problem_with_output(output)
            if problem is not None:
                return problem
        if not any(any(output.response_mask) for output in outputs):
            return "the response mask leaves nothing to learn. Repair the loop."
        return None

    def _problem_with_output(self, output: AgentLoopOutput) -> str | None:
        if any((output.multi_modal_data or {}).values()):
            return "the agent loop sent images, video or audio, which mid-training does not learn from."
        if len(output.response_mask) != len(output.response_ids):
            sizes = f"{len(output.response_mask)} for {len(output.response_ids)} tokens"
            return f"the agent loop gave a response mask of {sizes}. Repair the loop."
        rollout = self.config.actor_rollout_ref.rollout
        for key, length, limit in (
            ("prompt", len(output.prompt_ids), rollout.prompt_length),
            ("response", len(output.response_ids), rollout.response_length),
        ):
            if length == limit:
                return f"its {key} reaches {limit} tokens, where verl cuts it. Raise data.max_{key}_length."
        return None


def record(path: Path, config: DictConfig, max_dropped: float) -> Recording:
    """Play every demonstration through the agent loop of its row, as verl would in GRPO.

    Args:
        path: Parquet file of verl dataset rows with a column `expert_responses`.
        config: config of verl: model, data, rollout.
        max_dropped: share of the rows that may fail; each is logged.

    Raises:
        ExampleFileError: if the file cannot be read, or a row has no responses or no known agent.
        ExampleError: if more rows fail than allowed.
    """
    responses = read_responses(path)
    worker = _Worker(config, LLMServerClient(config))
    # Refused here, because every row would fail.
    end_token(worker.tokenizer)
    rows = _rows(path, worker, len(responses))
    examples: list[Example] = []
    failed: list[str] = []
    for index, played in enumerate(_play_all(worker, rows, responses)):
        if played.problem is None:
            if not examples:
                _report_template(worker, rows[index], played.outputs, responses[index][0])
            examples += _examples(index, played.outputs)
        else:
            failed.append(f"Row {index}: {played.problem}")
            logger.warning(f"{path}: {failed[-1]} It is left out.")
    recording = Recording(examples, failed, len(rows))
    check_failures(recording, path, max_dropped)
    return recording


def _report_template(worker: _Worker, row: DatasetRow, outputs: Sequence[AgentLoopOutput], response: str) -> None:
    """Log how the answers that a loop sends differ from those of the chat template, if they do."""
    # A dataset class of the job may give rows of another form.
    messages = list(cast(Iterable[Message], row.get("raw_prompt", ())))
    line = difference_line(worker.config, worker.tokenizer, messages, outputs, response)
    if line:
        logger.warning(line)


def _play_all(worker: _Worker, rows: list[DatasetRow], responses: list[list[str]]) -> list[PlayedRow]:
    try:
        return asyncio.run(_played(worker, rows, responses))
    finally:
        # This process plays nothing else, and lives as long as the job.
        close_pools()


async def _played(worker: _Worker, rows: list[DatasetRow], responses: list[list[str]]) -> list[PlayedRow]:
    slots = asyncio.Semaphore(AT_A_TIME)

    async def play(row: DatasetRow, texts: list[str]) -> PlayedRow:
        async with slots:
            return await worker.play(row, texts)

    return await asyncio.gather(*(play(row, texts) for row, texts in zip(rows, responses, strict=True)))


def _rows(path: Path, worker: _Worker, count: int) -> list[DatasetRow]:
    """Return the rows of a file as verl's data loader hands them to an agent loop.

    Args:
        path: the file.
        worker: runs the agent loops.
        count: number of rows in the file.
    """
    # A prompt that is too long is reported with its row, where verl would leave it out in silence.
    data = OmegaConf.merge(worker.config.data, {"filter_overlong_prompts": False})
    dataset = create_rl_dataset(str(path), data, worker.tokenizer, worker.processor)
    if len(dataset) != count:
        raise ExampleFileError(
            f"{path}: {type(dataset).__name__} (data.custom_cls) takes {len(dataset)} of {count} rows. Leave the "
            "others out of the file."
        )
    rows = []
    for index in range(count):
        row = dict(dataset[index])
        row.pop(COLUMN, None)
        row.setdefault("agent_name", worker.rollout_config.agent.default_agent_loop)
        _check_agent(row["agent_name"], f"{path}, row {index}")
        rows.append(row | {"uid": str(uuid4()), "session_id": 0, "global_steps": 0})
    return rows


def _check_agent(name: object, where: str) -> None:
    """Refuse a row whose agent loop does not exist."""
    if not name:
        raise ExampleFileError(f"{where}: agent_name={name!r}. Name the agent loop that plays it.")
    if name not in _agent_loop_registry:
        raise ExampleFileError(
            f"{where}: unknown agent_name {name!r}. {did_you_mean(str(name), _agent_loop_registry)} "
            "One of your own is named in the file of actor_rollout_ref.rollout.agent.agent_loop_config_path."
        )


def _examples(row_index: int, outputs: Sequence[AgentLoopOutput]) -> list[Example]:
    """Return an example of every output of a row that has something to learn."""
    return [
        Example(
            tuple(output.prompt_ids),
            tuple(output.response_ids),
            "imitation",
            provenance=f"demonstration {row_index}, output {index}",
            learned=None if all(output.response_mask) else tuple(map(bool, output.response_mask)),
        )
        for index, output in enumerate(outputs)
        if any(output.response_mask)
    ]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
