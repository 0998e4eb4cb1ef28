"""The data of a job's stages: branches, rationales, summaries and recordings, each made once and kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig

from verl_ee.config import CollectConfig, EarlyExperienceConfig, Objective, WriterConfig, built, needs_experts, sets_of
from verl_ee.errors import BranchError
from verl_ee.experience.collecting.collection import Collection
from verl_ee.experience.collecting.completed_experts import completed_experts
from verl_ee.experience.cost import read_prices
from verl_ee.experience.expert_files import ExpertFile
from verl_ee.experience.files.atomic import digest, file_digest
from verl_ee.experience.progress import plugin_logger
from verl_ee.experience.proposers import LISTED
from verl_ee.experience.provenance import provenance_of
from verl_ee.experience.store import read_branches
from verl_ee.objectives.encoder import Encoder
from verl_ee.objectives.episode_rows import check_growing
from verl_ee.objectives.examples import Example, LengthLimits
from verl_ee.objectives.files.example_files import ExampleFiles
from verl_ee.objectives.files.example_tables import PartEncoder
from verl_ee.objectives.files.row_files import read_rows
from verl_ee.objectives.reflection.rationales import gate_counts, write_rationales
from verl_ee.objectives.reflection.rejections import check_accepted, rejected_counts
from verl_ee.objectives.reflection.situations import situations
from verl_ee.objectives.reflection.state_choice import choose_states
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.objectives.stage_data import StageData
from verl_ee.objectives.summaries import write_summaries
from verl_ee.objectives.writing.endpoint import EndpointWriter
from verl_ee.prompts.formats import asked
from verl_ee.prompts.neutral import NeutralFormat
from verl_ee.run.folder import RunFolder
from verl_ee.run.summary import RunSummary
from verl_ee.trainer.checks.experts import check_own_data, check_played, experts_of
from verl_ee.trainer.data.encoding_workers import EncodingWorkers
from verl_ee.trainer.protocols import SamplingParams, ServerClient, Tokenizer
from verl_ee.trainer.rollout.context import context_length
from verl_ee.trainer.rollout.demonstrations import recorded
from verl_ee.trainer.rollout.proposer import PolicyProposer
from verl_ee.trainer.rollout.sampler import Sampler, sequences_at_a_time
from verl_ee.trainer.rollout.tokens import neutral_format
from verl_ee.trainer.rollout.writer import PolicyWriter
from verl_ee.trainer.stage_log import collected_line

logger = plugin_logger(__name__)


@dataclass(frozen=True)
class DataPreparation:
    """Makes the data that is not there yet, part by part, and records in the summary what each part took.

    Attributes:
        config: config of verl.
        early: its typed `early_experience`.
        folder: folder of the run.
        summary: summary of the run.
        tokenizer: tokenizer of the model.
        encoder: encoder of prompts and targets.
        client: returns verl's client of the rollout servers, which must be awake when it is used.
        sampler: returns the sampler of many responses from them.
        begin: called with the name of each part before it is made.
    """

    config: DictConfig
    early: EarlyExperienceConfig
    folder: RunFolder
    summary: RunSummary
    tokenizer: Tokenizer
    encoder: Encoder
    client: Callable[[], ServerClient]
    sampler: Callable[[], Sampler]
    begin: Callable[[str], None]

    def stage_data(self) -> StageData:
        """Collect, write and record all that the stages need, and return what each of them learns.

        Raises:
            EarlyExperienceError: if a part cannot be made; the parts before it are kept.
        """
        early = self.early
        if early.samples == "episode":
            check_growing(self._form(), self.encoder)
        experts = ExpertFile(Path(), "", ())
        given_rows = read_rows(early.examples)
        if needs_experts(early, list(given_rows)):
            experts = self._experts(list(given_rows))
            self._log_solved(experts)
        stores = self._collect(experts, sets_of(early, list(given_rows)))
        recorded = self._record_demonstrations()
        data = StageData(
            early,
            experts.trajectories,
            self._form(),
            self._example_files(experts),
            stores,
            self.folder.files,
            given_rows,
            recorded,
        )
        if "reflection" in built(early, list(given_rows)):
            self._write_rationales(experts, stores[early.reflection.collect])
        self._write_summaries(data)
        return data

    def _experts(self, given: list[Objective]) -> ExpertFile:
        """Return the experts, completed by the environment if their file leaves open what it gives."""
        early, names = self.early, sets_of(self.early, given)
        experts = experts_of(early)
        if experts.filtered_line:
            logger.warning(experts.filtered_line)
        check_own_data(self.folder, early, experts, given)
        collected = [early.collect[name] for name in names if name not in early.stores]
        config = collected[0] if collected else CollectConfig()
        given_stores = [Path(path).expanduser() for path in early.stores.values()]
        experts = completed_experts(
            self.folder.files, experts, early.environment, config, lambda: self.begin("complete"), given_stores
        )
        check_played(self.folder, early, experts, names)
        return experts

    def _log_solved(self, experts: ExpertFile) -> None:
        """Log how many steps experts took after their task was solved, if there are some."""
        steps = [step for trajectory in experts.trajectories for step in trajectory.steps]
        solved = sum(bool(step.solved) for step in steps)
        if solved:
            logger.info(
                f"experts: {solved} of {len(steps)} steps come after the task was solved; the world model learns them, "
                "imitation and reflection do not"
            )

    def _collect(self, experts: ExpertFile, names: list[str]) -> dict[str, Path]:
        """Collect every set of branches that has not been collected, and return the folder of each."""
        stores = {}
        for name in names:
            given_store = self.early.stores.get(name)
            if given_store is not None:
                stores[name] = Path(given_store).expanduser()
                continue
            stores[name] = self.folder.store(name)
            if self._is_missing(f"collect/{name}", "collect"):
                self._collect_set(name, experts, self.early.collect[name], shares_cache=len(names) > 1)
                self.folder.finish(f"collect/{name}")
        return stores

    def _collect_set(self, name: str, experts: ExpertFile, config: CollectConfig, shares_cache: bool) -> None:
        environment, trajectories = self.early.environment, experts.trajectories
        if config.cache is None and shares_cache:
            config = config.model_copy(update={"cache": str(self.folder.cache)})
        is_listed = config.alternatives in LISTED
        asked_for = None if is_listed else asked(self.early.prompt, self._form())
        provenance = provenance_of(environment, config, experts, asked_for)
        collection = Collection(self.folder.store(name), trajectories, environment, config, provenance)
        if collection.closed:
            return
        proposer = None if is_listed else self._proposer(config)
        prices = None if self.early.prices is None else read_prices(Path(self.early.prices).expanduser())
        logger.info(f"collect {name} begins: {len(trajectories)} trajectories")
        try:
            result = collection.run(proposer, self.early.history_length)
        except BranchError:
            self.summary.record_set(name, collection.result, prices)
            raise
        self.summary.record_set(name, result, prices)
        logger.info(collected_line(name, result))

    def _write_rationales(self, experts: ExpertFile, store: Path) -> None:
        """Have rationales written, unless that has been done."""
        if not self._is_missing("reflect", "reflect"):
            return
        began, early, config = time.monotonic(), self.early, self.early.reflection
        branches = read_branches(store)
        every = situations(experts.trajectories, branches, early.history_length, config.k, config.balanced)
        choice = choose_states(every, config.states)
        if choice.line:
            logger.info(f"reflect: {choice.line}")
        writer_config = early.writer(config.writer)
        writer = TemplateWriter() if writer_config.kind == "template" else self._writer(config.writer, writer_config)
        rationales = write_rationales(self.folder.files, choice.situations, writer, config.gates)
        gates, seconds = gate_counts(rationales), time.monotonic() - began
        self.summary.record_rationales(gates, seconds)
        rejected = rejected_counts(rationales) or "none"
        accepted = f"{gates.get('accepted', 0)} of {len(rationales)} rationales accepted"
        logger.info(f"reflect: {accepted}, rejected: {rejected} ({seconds:.0f} s)")
        check_accepted(rationales, early.min_accepted, self.folder.files)
        self.folder.finish("reflect")

    def _write_summaries(self, data: StageData) -> None:
        """Have the summaries written that a world model predicts, unless that has been done."""
        if "summarise" in self.folder.finished():
            return
        requests = data.summary_requests()
        if not requests or not self._is_missing("summarise", "summarise"):
            return
        began, name = time.monotonic(), self.early.world_model.writer
        writer_config = self.early.writer(name)
        writer = self._writer(name, writer_config)
        summaries = write_summaries(self.folder.files, requests, writer, writer_config, self.early.max_dropped)
        empty, seconds = sum(summary.is_empty for summary in summaries), time.monotonic() - began
        written = len(summaries) - empty
        self.summary.record_summaries(written, empty, seconds)
        logger.info(f"summarise: {written} summaries written, {empty} empty ({seconds:.0f} s)")
        self.folder.finish("summarise")

    def _record_demonstrations(self) -> list[Example] | None:
        """Return the examples that the job's agent loops make of the demonstrations, or None if there are none."""
        path = self.early.demonstrations
        if path is None:
            return None
        self.begin("record")
        recording = recorded(self.folder.recording_path, Path(path).expanduser(), self.config, self.early.max_dropped)
        return list(recording.examples)

    def _example_files(self, experts: ExpertFile) -> ExampleFiles:
        settings = {
            "identity": dict(self.folder.identity),
            "experts": digest([asdict(trajectory) for trajectory in experts.trajectories]),
            "limits": asdict(self._limits()),
            "versions": {name: version(name) for name in ("verl_ee", "transformers")},
        }
        if self.early.demonstrations is not None:
            settings["recording"] = file_digest(self.folder.recording_path)
        encoder = PartEncoder(self.encoder, self._limits())
        return ExampleFiles(self.folder.encoded, encoder, settings, EncodingWorkers(encoder))

    def _is_missing(self, part: str, stage: str) -> bool:
        """Return whether a part has to be made, and say so to `begin`."""
        if part in self.folder.finished():
            return False
        self.begin(stage)
        return True

    def _proposer(self, config: CollectConfig) -> PolicyProposer:
        policy = f"{self.config.actor_rollout_ref.model.path}@base"
        max_prompt = int(self.config.data.max_prompt_length)
        if self.early.samples == "episode":
            # There a prompt is the episode so far, and needs room for one more turn.
            limits = self._limits()
            max_prompt = limits.example - limits.answer
        window = max(1, sequences_at_a_time(self.config) // max(1, config.k))
        return PolicyProposer(
            self.sampler(),
            self.encoder,
            config,
            self._sampling(),
            self._form(),
            policy,
            max_prompt,
            window,
        )

    def _limits(self) -> LengthLimits:
        prompt, response = int(self.config.data.max_prompt_length), int(self.config.data.max_response_length)
        return LengthLimits(prompt + response, response, min(response, self.early.max_turn_tokens or response))

    def _form(self) -> NeutralFormat:
        return neutral_format(self.early.prompt, self.tokenizer)

    def _writer(self, name: str, config: WriterConfig) -> EndpointWriter | PolicyWriter:
        """Return a writer that is a language model: of an endpoint, or the policy of the job."""
        if config.kind == "endpoint":
            return EndpointWriter(config, self.folder.ledger(name))
        window, context = sequences_at_a_time(self.config), context_length(self.config)
        return PolicyWriter(self.client(), self.encoder, self.tokenizer, config, self._sampling(), window, context)

    def _sampling(self) -> SamplingParams:
        rollout = self.config.actor_rollout_ref.rollout
        return {"top_p": rollout.top_p, "top_k": rollout.top_k, "repetition_penalty": 1.0, "logprobs": False}
