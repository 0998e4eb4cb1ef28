"""A stand-in for verl's client of the rollout servers, which answers with an expert's responses."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from omegaconf import DictConfig
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from verl_ee.errors import ExampleError
from verl_ee.objectives.files.recordings import COLUMN
from verl_ee.trainer.protocols import SamplingParams, Tokenizer
from verl_ee.trainer.rollout.tokens import end_token


class RecordingClient(LLMServerClient):
    """Answers the calls of one agent loop with the responses of one demonstration, in their order.

    Attributes:
        calls: number of responses that the agent loop has asked for.
        problem: why a response could not be given, or None; an agent loop may hide the exception.
    """

    def __init__(
        self, config: DictConfig, tokenizer: Tokenizer, responses: Sequence[str], ends: Collection[int]
    ) -> None:
        """Prepare to answer.

        Args:
            config: config of verl.
            tokenizer: tokenizer of the agent loop.
            responses: responses of the expert, one per turn.
            ends: tokens that end a response of the model.
        """
        super().__init__(config)
        self._tokenizer, self._responses, self._ends = tokenizer, responses, ends
        self.calls = 0
        self.problem: str | None = None

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: SamplingParams, **_: object
    ) -> TokenOutput:
        """Return the tokens of the expert's next response, as a server would.

        Raises:
            ExampleError: if there is no further response, or the model could not have written it.
        """
        turn = self.calls
        self.calls += 1
        if turn >= len(self._responses):
            raise self._failed(
                f"the agent loop asks for turn {turn + 1}, but {COLUMN} has {len(self._responses)}. Add what the "
                "expert writes then."
            )
        token_ids = self._encode(turn, {*self._ends, *(sampling_params.get("stop_token_ids") or [])})
        most = sampling_params.get("max_tokens")
        if most is not None and len(token_ids) > most:
            raise self._failed(
                f"{COLUMN}[{turn}] has {len(token_ids)} tokens, and the agent loop takes {most}. Shorten it, or raise "
                "the loop's limit (early_experience.max_turn_tokens)."
            )
        return TokenOutput(
            token_ids=token_ids,
            # Zeros stand for log-probabilities that do not exist; agent loops align those that they get.
            log_probs=[0.0] * len(token_ids) if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            extra_fields={"global_steps": 0, "min_global_steps": 0, "max_global_steps": 0},
        )

    def _encode(self, turn: int, ends: set[int]) -> list[int]:
        """Encode a response as the model would generate it: the expert's control tokens are its own, and it ends."""
        token_ids = list(self._tokenizer.encode(self._responses[turn], add_special_tokens=False))
        stops = [index for index, token in enumerate(token_ids) if token in ends]
        if not stops:
            return [*token_ids, end_token(self._tokenizer)]
        if stops[0] < len(token_ids) - 1:
            token = self._tokenizer.convert_ids_to_tokens(token_ids[stops[0]])
            raise self._failed(
                f"{COLUMN}[{turn}] goes on after {token!r}, where the model would stop. End it there, and give what "
                "the agent loop asks for next as a text of its own."
            )
        return token_ids

    def _failed(self, problem: str) -> ExampleError:
        """Keep the first problem, and return it as an exception."""
        self.problem = self.problem or problem
        return ExampleError(problem)
