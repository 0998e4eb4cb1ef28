"""Alternatives from the policy, through verl's rollout servers, beside bare vLLM: `make bench BENCH=proposals`.

Rates are sampled responses per second, K for each state, of the same prompts with the same sampling parameters. Ours
renders and encodes the states, asks as collecting does (so many states at a time) and takes the actions out; bare vLLM
gets the token ids of a whole turn at once. Both start and warm up before anything counts, and every turn has states
that neither has seen, so no turn lives on prompts that are cached.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import IO, Any, NamedTuple

import hydra
import ray
from omegaconf import OmegaConf
from support.prompts import TOLD_FORM
from transformers import AutoTokenizer

from benchmarks.figures import AtLeast, Report, Sample
from benchmarks.settings import MODEL, cpu
from verl_ee.config import CollectConfig
from verl_ee.envs import make
from verl_ee.experience.collecting.proposal_queue import BATCHES
from verl_ee.experience.expert_states import expert_states
from verl_ee.experience.proposers import ProposalRequest
from verl_ee.experience.state_ref import StateRef
from verl_ee.objectives.encoder import Encoder
from verl_ee.trainer.rollout.proposer import PolicyProposer
from verl_ee.trainer.rollout.sampler import Sampler, sequences_at_a_time
from verl_ee.trainer.rollout.tokens import encoder_for

STATES, K, WARM_UP = 256, 8, 64
"""States of a turn, responses for each, and states that come before the first turn."""
PROMPT, RESPONSE = 448, 32
NEAR = 0.1
"""By how much the mean lengths of both sides' responses may differ; they are sampled."""
SAMPLING = {"top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": False}
ENGINE = (
    *("dtype", "load_format", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill"),
    *("enable_prefix_caching", "enforce_eager", "gpu_memory_utilization", "scheduling_policy", "logprobs_mode", "seed"),
)
"""Settings that verl's server hands on to vLLM."""


def configuration(overrides: tuple[str, ...]) -> Any:
    """Return verl's configuration of a rollout server that stands alone, with the settings of the household recipe."""
    rollout = "actor_rollout_ref.rollout"
    own = [
        *(f"actor_rollout_ref.model.path={MODEL}", f"{rollout}.nnodes=1", f"{rollout}.load_format=auto"),
        *(f"{rollout}.max_model_len=512", f"{rollout}.max_num_seqs=128"),
        *(f"data.max_prompt_length={PROMPT}", f"data.max_response_length={RESPONSE}"),
    ]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", [*overrides, *own])


class PromptedRequest(NamedTuple):
    """A state to propose for, and its prompt as the policy reads it."""

    request: ProposalRequest
    prompt: list[int]


def household(encoder: Encoder) -> Iterator[PromptedRequest]:
    """Yield states of the household whose prompts are not too long, each once."""
    env = make("verl_ee/Household-v0").unwrapped
    for index in itertools.count():
        trajectory = env.expert_trajectory(f"train/{index}")  # type: ignore[attr-defined]
        states = expert_states(trajectory, 8)
        for number, step in enumerate(trajectory.steps):
            prompt = encoder.prompt(TOLD_FORM.policy_prompt(states[number]))
            if len(prompt) <= PROMPT:
                ref = StateRef(index, number)
                yield PromptedRequest(ProposalRequest(ref, trajectory.task, states[number], step.action), prompt)


class Bench:
    """Measures a rollout server and a bare engine that both have been started; each turn has states of its own."""

    def __init__(self, proposer: PolicyProposer, bare: Bare, turns: list[list[PromptedRequest]]) -> None:
        self._proposer, self._bare = proposer, bare
        self._turns = {"ours": iter(turns), "bare": iter(turns)}
        self._written = 0.0

    def ours(self) -> Sample:
        requests = [state.request for state in next(self._turns["ours"])]
        size = max(1, self._proposer.window // BATCHES)
        batches = [requests[at : at + size] for at in range(0, len(requests), size)]
        began = time.perf_counter()
        with ThreadPoolExecutor(BATCHES) as threads:
            answers = list(threads.map(self._proposer.propose, batches))
        seconds, count = time.perf_counter() - began, len(requests) * K
        self._written = sum(answer.completion_tokens for answer in answers) / count
        return Sample(count / seconds, {"tokens_per_proposal": self._written})

    def bare(self) -> Sample:
        """Let bare vLLM answer what ours has answered before.

        Raises:
            RuntimeError: if its responses are of another length.
        """
        prompts = [state.prompt for state in next(self._turns["bare"])]
        answer = self._bare.ask({"prompts": prompts})
        count = len(prompts) * K
        written = answer["tokens"] / count
        if abs(written / self._written - 1) > NEAR:
            raise RuntimeError(f"Ours wrote {self._written:.3g} tokens per proposal, bare vLLM {written:.3g}.")
        return Sample(count / answer["seconds"])


class Bare:
    """vLLM in a process of its own, that generates when it is asked."""

    def __init__(self, engine: dict[str, Any], environ: dict[str, str], log: Path) -> None:
        # By itself, vLLM runs its engine beside the caller.
        own = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        environ = environ | own
        self._log, (replies, reply) = log, os.pipe()
        # vLLM and what it imports print to stdout, so answers come through a pipe of their own.
        command = [sys.executable, "-m", "benchmarks.proposals", "bare", str(reply)]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, env=environ, stdin=subprocess.PIPE, stdout=output, stderr=output, text=True, pass_fds=[reply]
            )
        os.close(reply)
        self._replies = os.fdopen(replies)
        self.ask(engine)

    def ask(self, request: dict[str, Any]) -> Any:
        """Return the answer to a request.

        Raises:
            RuntimeError: if the process ends without one.
        """
        sink = self._process.stdin
        if sink is not None:
            sink.write(json.dumps(request) + "\n")
            sink.flush()
        line = self._replies.readline()
        if not line:
            raise RuntimeError(f"Bare vLLM ended without an answer:\n{self._log.read_text()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate()
        self._replies.close()


@contextmanager
def started(report: Report, folder: Path) -> Iterator[Bench]:
    """Start both sides, warm them up, and end them afterwards."""
    with redirect_stdout(sys.stderr):
        from verl.workers.rollout.llm_server import LLMServerManager

    settings = cpu()
    # What the Ray of this process starts inherits its environment.
    os.environ.update(settings.environ)
    config = configuration(settings.overrides)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    encoder = encoder_for(tokenizer, "qwen2", {})
    rollout: Any = OmegaConf.to_container(config.actor_rollout_ref.rollout, resolve=True)
    engine = {key: rollout[key] for key in ENGINE} | rollout["engine_kwargs"]["vllm"]
    ray.init(address="local", num_cpus=16, num_gpus=1, include_dashboard=False, log_to_driver=False)
    bare = Bare(engine, settings.environ, folder / "bare.log")
    try:
        with redirect_stdout(sys.stderr):
            servers = LLMServerManager.create(config=config)
        sampler = Sampler(servers.get_client(), servers.get_addresses(), RESPONSE)
        collect = CollectConfig(alternatives="policy", k=K)
        window = max(1, sequences_at_a_time(config) // K)
        proposer = PolicyProposer(sampler, encoder, collect, SAMPLING, TOLD_FORM, "bench", PROMPT, window)
        states = household(encoder)
        turns = [list(itertools.islice(states, count)) for count in (WARM_UP, *[STATES] * report.runs)]
        bench = Bench(proposer, bare, turns)
        bench.ours()
        bench.bare()
        yield bench
    finally:
        bare.close()
        ray.shutdown()


def figures(report: Report, folder: Path) -> None:
    """Print proposals per second of ours beside bare vLLM."""
    with started(report, folder) as bench:
        constants = {"states": STATES, "proposals": STATES * K}
        thresholds = {"ratio_to_reference": AtLeast(0.8)}
        report.figure("proposals/vllm", bench.ours, bench.bare, None, thresholds, constants)


def serve(replies: IO[str]) -> None:
    """Serve requests from stdin: the first starts the engine, each other one is prompts to answer."""
    from vllm import LLM, SamplingParams, TokensPrompt

    sampling = {key: value for key, value in SAMPLING.items() if key != "logprobs"}
    params = SamplingParams(temperature=1.0, max_tokens=RESPONSE, **sampling)
    engine = LLM(model=str(MODEL), **json.loads(sys.stdin.readline()))
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in json.loads(line)["prompts"] for _ in range(K)]
        began = time.perf_counter()
        outputs = engine.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=replies, flush=True)


def main() -> int:
    """Print the figure, and return whether it was below its threshold."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="verl_ee-") as folder:
        figures(report, Path(folder))
    return 0 if report.met else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        serve(os.fdopen(int(sys.argv[2]), "w"))
    else:
        sys.exit(main())
