"""What the stages of a job learn from, made once and kept: branches, rationales, summaries, recordings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from verl_ee.config import CollectConfig, EarlyExperienceConfig, built, needs_experts, sets_of
from verl_ee.experience.collector import Collection, provenance_of
from verl_ee.experience.cost import read_prices
from verl_ee.experience.experts import ExpertFile, load_experts
from verl_ee.experience.proposers import LISTED
from verl_ee.experience.store import read_outcomes
from verl_ee.objectives.curriculum import Curriculum
from verl_ee.objectives.endpoint import EndpointWriter
from verl_ee.objectives.examples import Encoder, Example
from verl_ee.objectives.formats import read_rows
from verl_ee.objectives.rationales import write_all
from verl_ee.objectives.reflection import TemplateWriter, counts, situations
from verl_ee.objectives.summaries import summarise
from verl_ee.trainer.demonstrations import recorded
from verl_ee.trainer.proposer import PolicyProposer
from verl_ee.trainer.run_folder import RunFolder
from verl_ee.trainer.sampler import Sampler
from verl_ee.trainer.summary import Summary
from verl_ee.trainer.writer import PolicyWriter


@dataclass(frozen=True)
class Sources:
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
    summary: Summary
    tokenizer: Any
    encoder: Encoder
    client: Callable[[], Any]
    sampler: Callable[[], Sampler]
    begin: Callable[[str], None]

    def curriculum(self) -> Curriculum:
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
        curriculum = Curriculum(early, experts.trajectories, self.encoder, stores, own, length, given, self._recorded())
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
        if config.facts is None and shared:
            config = config.model_copy(update={"facts": str(self.folder.facts)})
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
        found = situations(experts.trajectories, read_outcomes(store), self.early.history_length, config.k)
        writer = TemplateWriter() if config.writer == "template" else self._writer(config.writer)
        reflections = write_all(self.folder.own, found, writer, config.gates, config.min_accepted)
        self.summary.reflected(counts(reflections), time.monotonic() - began)
        self.folder.finish("reflect")

    def _summarise(self, curriculum: Curriculum) -> None:
        """Have the summaries written that a world model predicts, unless that has been done."""
        found = curriculum.changes()
        if not found or not self._missing("summarise", "summarise"):
            return
        began, writer = time.monotonic(), self._writer(self.early.world_model.writer)
        numbers = summarise(self.folder.own, found, writer, self.early.max_dropped)
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
