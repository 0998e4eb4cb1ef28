"""Types for verl's objects, as far as the trainer uses them: verl itself has none, and tests stand in for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, SupportsFloat, TypeAlias, TypedDict

from omegaconf import DictConfig
from tensordict import TensorDict

from verl_ee.config import StageConfig
from verl_ee.prompts.format import Message

Numbers: TypeAlias = "SupportsFloat | Sequence[Numbers]"
"""A metric of verl: a number, or lists of numbers over micro-batches and workers."""


class SamplingParams(TypedDict, total=False):
    """verl's parameters of a sampled response."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    logprobs: bool
    max_tokens: int
    stop_token_ids: list[int] | None


class ActorUpdate(TypedDict):
    """The output of `update_supervised`.

    Attributes:
        metrics: by name; each over micro-batches and workers.
    """

    metrics: Mapping[str, Numbers]


class AddedToken(Protocol):
    """A token that was added to the vocabulary of a tokenizer.

    Attributes:
        content: its text.
        special: whether it is no text: a decoder may leave it out.
        normalized, lstrip, rstrip, single_word: whether what stands around it decides where it begins and ends.
    """

    content: str
    special: bool
    normalized: bool
    lstrip: bool
    rstrip: bool
    single_word: bool


class Tokenizer(Protocol):
    """A Hugging Face tokenizer.

    Attributes:
        eos_token_id: token that ends a response, or None.
        pad_token_id: token of the padding, or None.
        all_special_tokens: texts of its special tokens.
        added_tokens_decoder: its added tokens, by id.
        name_or_path: folder or name that it was loaded from.
    """

    eos_token_id: int | None
    pad_token_id: int | None
    all_special_tokens: list[str]
    added_tokens_decoder: Mapping[int, AddedToken]
    name_or_path: str

    def get_added_vocab(self) -> dict[str, int]:
        """Return the tokens that were added to the vocabulary, with their ids."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text."""

    def apply_chat_template(
        self, messages: Sequence[Message], *, tokenize: bool, add_generation_prompt: bool, **kwargs: object
    ) -> object:
        """Return a conversation as text, or as token ids in some form."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of token ids."""

    def convert_ids_to_tokens(self, ids: int) -> str:
        """Return the text of one token."""


class Response(Protocol):
    """A response of a rollout server.

    Attributes:
        token_ids: token ids of the response, its end included.
        stop_reason: why the server ended it, as far as it says; `completed` may also be a response without an end.
    """

    token_ids: Sequence[int]
    stop_reason: str | None


class ServerClient(Protocol):
    """verl's client of the rollout servers."""

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: SamplingParams) -> Response:
        """Return one response to a prompt; verl may take keys out of `sampling_params`."""


class ServerManager(Protocol):
    """verl's manager of the rollout servers."""

    def get_addresses(self) -> Sequence[str]:
        """Return host and port of every server."""


class ServerWeights(Protocol):
    """verl's checkpoint manager, which brings the actor's weights to the rollout servers."""

    def sleep_replicas(self) -> None:
        """Free the memory of the servers."""

    def update_weights(self, global_steps: int) -> None:
        """Wake the servers with the weights of the actor."""


class Servers(Protocol):
    """The rollout servers of a job."""

    def sleep(self) -> None:
        """Free the memory that they share with the actor."""

    def wake(self) -> None:
        """Give them the weights of the actor, and let them serve."""


class SeparateTrainer(Protocol):
    """verl's `separate_async` trainer.

    Attributes:
        global_steps: present step of GRPO, the version of the weights that `switch_to_rollout` gives.
        standalone_checkpoint_manager: brings weights to the servers with devices of their own.
    """

    global_steps: int
    standalone_checkpoint_manager: ServerWeights

    def switch_to_trainer(self) -> None:
        """End the requests to servers that share devices with the actor, and put them to sleep; there may be none."""

    def switch_to_rollout(self) -> None:
        """Wake them with the weights of the actor, and send them requests again."""


class MetricBackend(Protocol):
    """One backend of verl's tracking."""

    def log(self, data: Mapping[str, SupportsFloat], step: int) -> None:
        """Log the metrics of a step."""

    def define_metric(self, name: str, step_metric: str = ...) -> object:
        """Choose the step key of a metric; wandb alone has it."""


class Tracking(Protocol):
    """verl's tracking.

    Attributes:
        logger: backends by name.
    """

    logger: Mapping[str, MetricBackend]

    def log(self, data: Mapping[str, SupportsFloat], step: int) -> None:
        """Log the metrics of a step to every backend."""

    def finish(self, exit_code: int = 0) -> None:
        """End every backend."""


class ActorWorkers(Protocol):
    """Worker group of `EarlyExperienceWorker`; methods return one value per worker."""

    def begin_stage(self, stage: StageConfig, total_steps: int, /) -> object:
        """Start a supervised stage."""

    def update_supervised(self, data: TensorDict, /) -> ActorUpdate:
        """Take one optimizer step on a mini-batch."""

    def save_stage(self, path: str, step: int, /) -> object:
        """Save a stage into a folder of an actor checkpoint."""

    def load_stage(self, path: str, contents: Sequence[str], /) -> object:
        """Load parts of a checkpoint of a stage."""

    def hand_over(self, keep_optimizer: bool, /) -> object:
        """Get ready for GRPO."""

    def exempt_from_rotation(self, path: str, /) -> object:
        """Keep a checkpoint from being deleted by verl."""

    def checkpoint_bytes(self) -> Sequence[int]:
        """Return the bytes that each worker's part of a checkpoint takes."""

    def policy_fingerprint(self) -> Sequence[str]:
        """Return a hash of each worker's part of the policy."""


class ReferenceWorkers(Protocol):
    """Worker group that holds the reference policy."""

    def anchor_reference(self, path: str, /) -> Sequence[str]:
        """Load an actor checkpoint into the reference, and return its fingerprints."""

    def anchor_adapter(self, path: str, /) -> object:
        """Make the LoRA adapter of an actor checkpoint the reference."""


class SamplingTrainer(Protocol):
    """A trainer of verl whose rollout servers have been started.

    Attributes:
        config: config of verl.
        verl_mode: verl's name of the trainer.
        llm_server_manager: manager of its servers.
    """

    config: DictConfig
    verl_mode: str
    llm_server_manager: ServerManager

    def get_llm_client(self) -> ServerClient:
        """Return a client of the servers."""


class ReferenceTrainer(Protocol):
    """A trainer of verl whose workers have been built.

    Attributes:
        config: config of verl.
        use_reference_policy: whether the job has a reference.
        ref_in_actor: whether the reference is the LoRA actor itself.
        ref_policy_wg: worker group of the reference; missing in a job without one.
    """

    config: DictConfig
    use_reference_policy: bool
    ref_in_actor: bool
    ref_policy_wg: ReferenceWorkers
