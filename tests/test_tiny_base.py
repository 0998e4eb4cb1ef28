"""The tiny base model in the repository is the one that its card describes."""

from __future__ import annotations

import hashlib
import json

import torch
from support.jobs import ROOT
from support.prompts import TOLD_FORM
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_ee.prompts.state import State

MODEL = ROOT / "examples/tiny_base/model"


def test_weights_have_the_hash_on_the_card_and_are_small() -> None:
    weights = (MODEL / "model.safetensors").read_bytes()
    card = json.loads((MODEL / "build.json").read_text())
    assert hashlib.sha256(weights).hexdigest() == card["model.safetensors sha256"]
    assert len(weights) <= 4 * 2**20
    assert (ROOT / card["script"]).exists()


def test_model_loads_and_keeps_to_the_format() -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_100_000
    state = State(
        "put a cup on a table", (), "The kitchen has table 1, sink 1.", ("go to table 1", "go to sink 1", "look")
    )
    prompt = tokenizer.apply_chat_template(TOLD_FORM.policy_prompt(state), add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    response = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert TOLD_FORM.read(response, state.admissible_actions).action in state.admissible_actions


def test_text_round_trips_through_the_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for text in ("On shelf 1 you see cup 2.", "Crème brûlée\n\t{'a': 1}", "<|im_end |>"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
