"""What the stages of a job learn from, made once and kept: branches, rationales, summaries, recordings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from verl_ee.config import CollectConfig, EarlyExperienceConfig, built, needs_experts, sets_of
from verl_ee.experience.collecting.collection import Collection
from verl_ee.experience.cost import read_prices
from verl_ee.experience.expert_files import ExpertFile, load_experts
from verl_ee.experience.proposers import LISTED
from verl_ee.experience.provenance import provenance_of
from verl_ee.experience.store import read_branches
from verl_ee.objectives.endpoint import EndpointWriter
from verl_ee.objectives.examples import Encoder, Example
from verl_ee.objectives.reflection.rationales import gate_counts, write_rationale_file
from verl_ee.objectives.reflection.situations import situations
from verl_ee.objectives.reflection.template_writer import TemplateWriter
from verl_ee.objectives.row_files import read_rows
from verl_ee.objectives.stage_data import StageData
from verl_ee.objectives.summaries import write_summaries
from verl_ee.run.folder import RunFolder
from verl_ee.run.summary import RunSummary
from verl_ee.trainer.rollout.demonstrations import recorded
from verl_ee.trainer.rollout.proposer import PolicyProposer
from verl_ee.trainer.rollout.sampler import Sampler
from verl_ee.trainer.rollout.writer import PolicyWriter


@dataclass(frozen=True)
class DataPreparation:
    """Makes what is not there yet, in its order, and notes what that took.

    Attributes:
        config: of verl.
        early: its typed `early_experience`.
        folder: of the run.
        summary: of the run.
        tokenizer: of the model.
        encoder: of prompts and targets.
        client: returns verl's client of the rollout servers, which must be awake when it is used.
        sampler: returns what samples many responses from them.
        begin: called with the name of each part that is made.
    """

    config: DictConfig
    early: EarlyExperienceConfig
    folder: RunFolder
    summary: RunSummary
    tokenizer: Any
    encoder: Encoder
    client: Callable[[], Any]
    sampler: Callable[[], Sampler]
    begin: Callable[[str], None]

    def curriculum(self) -> StageData:
        """Return what every stage learns; all that it needs is collected, written and recorded then.

        Raises:
            EarlyExperienceError: if a part cannot be made; what was made is kept.
        """
        early, own = self.early, self.folder.own
        experts = ExpertFile(Path(), "", ())
        if needs_experts(early):
            experts = load_experts(early.experts, early.environment.id, early.environment.kwargs, early.max_experts)
        given = read_rows(early.examples)
        stores = self._collect(experts, sets_of(early, list(given)))
        length = int(self.config.data.max_prompt_length + self.config.data.max_response_length)
        curriculum = StageData(early, experts.trajectories, self.encoder, stores, own, length, given, self._recorded())
        if "reflection" in built(early, list(given)):
            self._reflect(experts, stores[early.reflection.collect])
        self._summarise(curriculum)
        return curriculum

    def _collect(self, experts: ExpertFile, names: list[str]) -> dict[str, Path]:
        """Collect every set of branches that has not been, and return where each lies."""
        stores = {}
        for name in names:
            given = self.early.stores.get(name)
            stores[name] = self.folder.store(name) if given is None else Path(given).expanduser()
            if given is None and self._missing(f"collect/{name}", "collect"):
                self._collect_set(name, experts, self.early.collect[name], shared=len(names) > 1)
                self.folder.finish(f"collect/{name}")
        return stores

    def _collect_set(self, name: str, experts: ExpertFile, config: CollectConfig, shared: bool) -> None:
        environment, trajectories = self.early.environment, experts.trajectories
        if config.cache is None and shared:
            config = config.model_copy(update={"cache": str(self.folder.cache)})
        provenance = provenance_of(environment, config, experts.sha256, len(trajectories))
        collection = Collection(self.folder.store(name), trajectories, environment, config, provenance)
        if not collection.closed:
            proposer = None if config.alternatives in LISTED else self._proposer(config)
            prices = None if self.early.prices is None else read_prices(Path(self.early.prices).expanduser())
            self.summary.collected(name, collection.run(proposer, self.early.history_length), prices)

    def _reflect(self, experts: ExpertFile, store: Path) -> None:
        """Have rationales written, unless that has been done."""
        if not self._missing("reflect", "reflect"):
            return
        config, began = self.early.reflection, time.monotonic()
        found = situations(experts.trajectories, read_branches(store), self.early.history_length, config.k)
        writer = TemplateWriter() if config.writer == "template" else self._writer(config.writer)
        reflections = write_rationale_file(self.folder.own, found, writer, config.gates, config.min_accepted)
        self.summary.reflected(gate_counts(reflections), time.monotonic() - began)
        self.folder.finish("reflect")

    def _summarise(self, curriculum: StageData) -> None:
        """Have the summaries written that a world model predicts, unless that has been done."""
        found = curriculum.summary_requests()
        if not found or not self._missing("summarise", "summarise"):
            return
        began, writer = time.monotonic(), self._writer(self.early.world_model.writer)
        numbers = write_summaries(self.folder.own, found, writer, self.early.max_dropped)
        self.summary.summarised(numbers, time.monotonic() - began)
        self.folder.finish("summarise")

    def _recorded(self) -> list[Example] | None:
        """Return what the job's agent loops made of the demonstrations, or None if there are none."""
        path = self.early.demonstrations
        if path is None:
            return None
        store = self.folder.own / "recording.parquet"
        return list(recorded(store, Path(path).expanduser(), self.config, self.early.max_dropped).examples)

    def _missing(self, part: str, stage: str) -> bool:
        if part in self.folder.finished():
            return False
        self.begin(stage)
        return True

    def _proposer(self, config: CollectConfig) -> PolicyProposer:
        policy, limit = f"{self.config.actor_rollout_ref.model.path}@base", int(self.config.data.max_prompt_length)
        return PolicyProposer(self.sampler(), self.encoder, self.tokenizer, config, self._sampling(), policy, limit)

    def _writer(self, kind: Literal["policy", "endpoint"]) -> EndpointWriter | PolicyWriter:
        config = self.early.reflection
        if kind == "endpoint":
            ledger = self.folder.own / "endpoint.json"
            return EndpointWriter(config.endpoint, config.temperature, config.max_tokens, ledger)
        limit = self.config.actor_rollout_ref.rollout.max_model_len
        longest = None if limit is None else int(limit) - config.max_tokens
        return PolicyWriter(self.client(), self.encoder, self.tokenizer, config, self._sampling(), longest)

    def _sampling(self) -> dict[str, Any]:
        rollout = self.config.actor_rollout_ref.rollout
        return {"top_p": rollout.top_p, "top_k": rollout.top_k, "repetition_penalty": 1.0, "logprobs": False}
