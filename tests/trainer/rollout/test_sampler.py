"""Responses from rollout servers: the same whether each goes through verl's client or all in one request."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import islice
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from benchmarks.proposals import RESPONSE, configuration, household
from benchmarks.settings import MODEL, cpu
from transformers import AutoTokenizer

from verl_ee.errors import StageError
from verl_ee.trainer.rollout.sampler import Sampler, takes_batches
from verl_ee.trainer.rollout.tokens import encoder_for

PARAMS = {"temperature": 0.5, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.0, "logprobs": False}
PROMPTS = [[10 * number, number] for number in range(1, 6)]


class Server:
    """A completions API that answers the n-th copy of a prompt with its first token and n, in no good order."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.requests: list[dict[str, Any]] = []
        self.authorization: str | None = None

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        self.authorization = request.headers.get("Authorization")
        if self.status != 200:
            return web.json_response({"error": {"message": "prompt is too long"}}, status=self.status)
        ids = [[prompt[0], copy] for prompt in body["prompt"] for copy in range(body["n"])]
        choices = [{"index": index, "token_ids": one} for index, one in enumerate(ids)]
        return web.json_response({"choices": choices[::-1]})


def sample(servers: list[Server], prompts: list[list[int]], n: int) -> list[list[list[int]]]:
    """Sample from scripted servers."""

    async def run() -> list[list[list[int]]]:
        async with AsyncExitStack() as stack:
            addresses = []
            for server in servers:
                app = web.Application()
                app.router.add_post("/v1/completions", server.answer)
                started = await stack.enter_async_context(TestServer(app))
                addresses.append(f"127.0.0.1:{started.port}")
            return await Sampler(None, addresses, 32).sample(prompts, n, PARAMS)

    return asyncio.run(run())


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_prompts_are_spread_over_servers_and_answers_come_back_in_their_order(count: int) -> None:
    servers = [Server() for _ in range(count)]
    assert sample(servers, PROMPTS, 3) == [[[prompt[0], copy] for copy in range(3)] for prompt in PROMPTS]
    sizes = [sum(len(body["prompt"]) for body in server.requests) for server in servers]
    assert sum(sizes) == len(PROMPTS)
    assert max(sizes) - min(sizes) <= 1
    assert all(len(server.requests) <= 1 for server in servers)


def test_servers_get_the_parameters_of_a_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "key of the servers")
    server = Server()
    sample([server], PROMPTS, 2)
    (body,) = server.requests
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.0, "min_p": 0.0, "logprobs": None}
    assert body == given | {"prompt": PROMPTS, "n": 2, "max_tokens": 32, "return_token_ids": True}
    assert server.authorization == "Bearer key of the servers"


def test_no_prompts_are_no_requests() -> None:
    server = Server()
    assert sample([server], [], 4) == []
    assert not server.requests


def test_a_server_that_refuses_or_is_gone_ends_the_stage() -> None:
    with pytest.raises(StageError, match=r"The rollout server at .* refused 5 prompts: .*prompt is too long"):
        sample([Server(400)], PROMPTS, 1)
    with pytest.raises(StageError, match=r"The rollout server at 127\.0\.0\.1:9 is gone .* repeat the command"):
        asyncio.run(Sampler(None, ["127.0.0.1:9"], 32).sample(PROMPTS, 1, PARAMS))


def test_without_batches_each_response_goes_through_verls_client() -> None:
    requests: list[str] = []

    class Client:
        async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
            requests.append(request_id)
            # verl takes keys out of what it is given.
            assert sampling_params.pop("max_tokens") == 32
            assert sampling_params.pop("logprobs") is False
            return SimpleNamespace(token_ids=prompt_ids)

    responses = asyncio.run(Sampler(Client(), (), 32).sample(PROMPTS, 2, PARAMS))
    assert responses == [[prompt, prompt] for prompt in PROMPTS]
    assert len(set(requests)) == 10


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], True),
        (["max_model_len=416"], True),
        (["max_model_len=415"], False),
        (["full_determinism=True"], False),
        (["name=sglang"], False),
    ],
)
def test_batches_are_asked_for_where_they_change_nothing(overrides: list[str], expected: bool) -> None:
    given = [f"actor_rollout_ref.rollout.{item}" for item in overrides]
    assert takes_batches(compose(given)) == expected


@pytest.mark.parametrize(("merge", "expected"), [(False, False), (True, True)])
@pytest.mark.parametrize("rank", ["lora_rank", "lora.rank"])
def test_an_adapter_beside_the_weights_is_served_by_verls_client(rank: str, merge: bool, expected: bool) -> None:
    model = "actor_rollout_ref.model"
    assert takes_batches(compose([f"{model}.{rank}=8", f"{model}.lora.merge={merge}"])) == expected


def compose(overrides: list[str]) -> Any:
    lengths = ["data.max_prompt_length=384", "data.max_response_length=32", "actor_rollout_ref.rollout.name=vllm"]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", [*lengths, *overrides])


@pytest.fixture(scope="module")
def servers() -> Iterator[Any]:
    """verl's rollout servers with the tiny model."""
    import ray
    from verl.workers.rollout.llm_server import LLMServerManager

    settings = cpu()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.environ.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(MODEL.parents[2]), prepend=os.pathsep)
        ray.init(address="local", num_cpus=16, num_gpus=1, include_dashboard=False, log_to_driver=False)
        yield LLMServerManager.create(config=configuration(settings.overrides))
        ray.shutdown()


@pytest.mark.slow
def test_batches_and_verls_client_get_the_same_responses(servers: Any) -> None:
    encoder = encoder_for(AutoTokenizer.from_pretrained(MODEL), "qwen2", {})
    prompts = [state.prompt for state in islice(household(encoder), 48)]
    greedy = PARAMS | {"temperature": 0.0, "top_p": 1.0}

    def responses(addresses: list[str], length: int) -> list[list[list[int]]]:
        return asyncio.run(Sampler(servers.get_client(), addresses, length).sample(prompts, 2, greedy))

    whole, cut = (responses(servers.get_addresses(), length) for length in (RESPONSE, 3))
    assert whole == responses([], RESPONSE)
    assert cut == responses([], 3) == [[one[:3] for one in each] for each in whole]
    assert len({tuple(each[0]) for each in whole}) > 1
