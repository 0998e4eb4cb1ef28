"""An expert's responses played through the job's own agent loops; what these send becomes the examples of imitation."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, AgentLoopWorker, _agent_loop_registry
from verl.trainer.ppo.utils import create_rl_dataset
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from verl_ee.errors import ExampleError, ExampleFileError, did_you_mean
from verl_ee.objectives.examples import Example
from verl_ee.objectives.recordings import COLUMN, Recording, check_failures, read_responses
from verl_ee.trainer.stage_log import stage_logger

logger = stage_logger(__name__)
AT_A_TIME = 16
"""Rows whose agent loops run at the same time, at most; GRPO runs many more."""


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    eos_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text."""

    def convert_ids_to_tokens(self, ids: int) -> str:
        """Return the text of one token."""


class RecordingClient(LLMServerClient):
    """Stands in for verl's client of the rollout servers, for one agent loop: answers with an expert's responses.

    Attributes:
        asked: how often the agent loop has asked.
        problem: why an answer could not be given, or None; an agent loop may hide the exception.
    """

    def __init__(
        self, config: DictConfig, tokenizer: Tokenizer, responses: Sequence[str], ends: Collection[int]
    ) -> None:
        """Prepare to answer.

        Args:
            config: of verl.
            tokenizer: of the agent loop.
            responses: of the expert, one per turn.
            ends: tokens that end a response of the model.
        """
        super().__init__(config)
        self._tokenizer, self._responses, self._ends = tokenizer, responses, ends
        self.asked = 0
        self.problem: str | None = None

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        """Return the tokens of the expert's next response, as a server would.

        Raises:
            ExampleError: if there is no further response, or the model could not have written it.
        """
        turn, self.asked = self.asked, self.asked + 1
        if turn >= len(self._responses):
            raise self._fault(
                f"the agent loop asks for turn {turn + 1}, but {COLUMN} has {len(self._responses)}. Add what the "
                "expert writes then."
            )
        ids = self._encode(turn, {*self._ends, *(sampling_params.get("stop_token_ids") or [])})
        return TokenOutput(
            token_ids=ids,
            # Of a response that was not sampled nothing is known; agent loops align what they get.
            log_probs=[0.0] * len(ids) if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            extra_fields={"global_steps": 0, "min_global_steps": 0, "max_global_steps": 0},
        )

    def _encode(self, turn: int, ends: set[int]) -> list[int]:
        """Encode a response as the model would generate it: the expert's control tokens are its own, and it ends."""
        ids = list(self._tokenizer.encode(self._responses[turn], add_special_tokens=False))
        stop = next((position for position, token in enumerate(ids) if token in ends), None)
        if stop is None:
            return [*ids, self._tokenizer.eos_token_id]
        if stop < len(ids) - 1:
            raise self._fault(
                f"{COLUMN}[{turn}] goes on after {self._tokenizer.convert_ids_to_tokens(ids[stop])!r}, where the model "
                "would stop. End it there, and give what the agent loop asks for next as a text of its own."
            )
        return ids

    def _fault(self, problem: str) -> ExampleError:
        self.problem = self.problem or problem
        return ExampleError(problem)


class _Worker(AgentLoopWorker):
    """Runs agent loops as verl does, tools and registry included, and leaves what they return as it is."""

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **_: Any) -> Any:
        return output

    def ends(self) -> set[int]:
        """Return the tokens that end a response: of the tokenizer, and of the model's generation config."""
        ends = getattr(self.model_config.generation_config, "eos_token_id", None)
        listed = ends if isinstance(ends, list) else [ends]
        return {int(token) for token in [self.tokenizer.eos_token_id, *listed] if token is not None}

    async def play(self, row: dict[str, Any], responses: Sequence[str]) -> tuple[list[AgentLoopOutput], str | None]:
        """Run the agent loop of a row; return its outputs, or why there are none."""
        # Each row has a client of its own; tools and tokenizer are shared, as in verl.
        worker = copy.copy(self)
        worker.llm_client = client = RecordingClient(self.config, self.tokenizer, responses, self.ends())
        rollout = self.config.actor_rollout_ref.rollout
        sampling = {
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            "top_k": rollout.top_k,
            "repetition_penalty": 1.0,
            "logprobs": rollout.calculate_log_probs,
        }
        trajectory = {"step": 0, "sample_index": row.get("index", 0), "rollout_n": 0, "validate": False}
        try:
            output: Any = await worker._run_agent_loop(sampling, trajectory, trace=False, **row)
        except Exception as error:  # an agent loop, a tool of it or its constructor may raise anything
            reason = f"the agent loop raised {type(error).__name__}: {_first_line(error)}. Repair the row or the loop."
            return [], client.problem or reason
        outputs = list(output) if isinstance(output, list) else [output]
        return outputs, client.problem or self._problem_of(outputs, client.asked, len(responses))

    def _problem_of(self, outputs: list[AgentLoopOutput], asked: int, given: int) -> str | None:
        if asked < given:
            return (
                f"the agent loop ended after {asked} of {given} responses of the expert. Compare them with what ends "
                "the loop: an action, a response without a tool call, a limit of turns or of tokens."
            )
        rollout = self.config.actor_rollout_ref.rollout
        for output in outputs:
            if any((output.multi_modal_data or {}).values()):
                return "the agent loop sent images, video or audio, which mid-training does not learn from."
            if len(output.response_mask) != len(output.response_ids):
                sizes = f"{len(output.response_mask)} for {len(output.response_ids)} tokens"
                return f"the agent loop gave a response mask of {sizes}. Repair the loop."
            for key, ids, limit in (
                ("prompt", output.prompt_ids, rollout.prompt_length),
                ("response", output.response_ids, rollout.response_length),
            ):
                if len(ids) == limit:
                    return f"its {key} reaches {limit} tokens, where verl cuts it. Raise data.max_{key}_length."
        if not any(map(_has_learned, outputs)):
            return "the response mask leaves nothing to learn. Repair the loop."
        return None


def record(path: Path, config: DictConfig, max_dropped: float) -> Recording:
    """Play every demonstration through the agent loop of its row, as verl would in GRPO.

    Args:
        path: Parquet file of verl dataset rows with a column `expert_responses`.
        config: of verl: model, data, rollout.
        max_dropped: share of the rows that may fail; each is logged.

    Raises:
        ExampleFileError: if the file cannot be read, or a row has no responses or no known agent.
        ExampleError: if more rows fail than allowed.
    """
    responses = read_responses(path)
    worker = _Worker(config, LLMServerClient(config))
    if worker.tokenizer.eos_token_id is None:
        raise ExampleError("The tokenizer has no eos_token, so a response would never end. Set one and save it again.")
    rows = _rows(path, worker, len(responses))
    results = asyncio.run(_play_all(worker, rows, responses))
    examples = [
        example
        for row, (outputs, problem) in enumerate(results)
        if problem is None
        for example in _examples(row, outputs)
    ]
    failed = [f"Row {row}: {problem}" for row, (_, problem) in enumerate(results) if problem is not None]
    for line in failed:
        logger.warning(f"{path}: {line} It is left out.")
    recording = Recording(examples, failed, len(rows))
    check_failures(recording, path, max_dropped)
    return recording


async def _play_all(
    worker: _Worker, rows: list[dict[str, Any]], responses: list[list[str]]
) -> list[tuple[list[AgentLoopOutput], str | None]]:
    turns = asyncio.Semaphore(AT_A_TIME)

    async def one(row: dict[str, Any], texts: list[str]) -> tuple[list[AgentLoopOutput], str | None]:
        async with turns:
            return await worker.play(row, texts)

    return list(await asyncio.gather(*(one(row, texts) for row, texts in zip(rows, responses, strict=True))))


def _rows(path: Path, worker: _Worker, count: int) -> list[dict[str, Any]]:
    """Return the rows as verl's data loader hands them to an agent loop."""
    # A prompt that is too long is reported with its row, where verl would leave it out in silence.
    data = OmegaConf.merge(worker.config.data, {"filter_overlong_prompts": False})
    dataset = create_rl_dataset(str(path), data, worker.tokenizer, worker.processor)
    if len(dataset) != count:
        raise ExampleFileError(
            f"{path}: {type(dataset).__name__} (data.custom_cls) takes {len(dataset)} of {count} rows. Leave the "
            "others out of the file."
        )
    rows = []
    for number in range(count):
        row = dict(dataset[number])
        row.pop(COLUMN, None)
        row.setdefault("agent_name", worker.rollout_config.agent.default_agent_loop)
        name = row["agent_name"]
        if not name:
            raise ExampleFileError(f"{path}, row {number}: agent_name={name!r}. Name the agent loop that plays it.")
        if name not in _agent_loop_registry:
            raise ExampleFileError(
                f"{path}, row {number}: unknown agent_name {name!r}. {did_you_mean(str(name), _agent_loop_registry)} "
                "One of your own is named in the file of actor_rollout_ref.rollout.agent.agent_loop_config_path."
            )
        rows.append(row | {"uid": str(uuid4()), "session_id": 0, "global_steps": 0})
    return rows


def _examples(row: int, outputs: list[AgentLoopOutput]) -> list[Example]:
    return [
        Example(
            tuple(output.prompt_ids),
            tuple(output.response_ids),
            "imitation",
            provenance=f"demonstration {row}, output {index}",
            learned=None if all(output.response_mask) else tuple(map(bool, output.response_mask)),
        )
        for index, output in enumerate(outputs)
        if _has_learned(output)
    ]


def _has_learned(output: AgentLoopOutput) -> bool:
    return any(output.response_mask)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
