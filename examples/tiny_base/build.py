"""Build the tiny base model and its tokenizer from scratch, on generated text.

    python examples/tiny_base/build.py --out examples/tiny_base/model --seed 0

The result is a Hugging Face folder in Qwen2 form. It stands in for a pre-trained model where none can be downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from corpus import Sample, samples
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

Row = tuple[list[int], int]
END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every word of the generated text is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = (
        "\n".join([message["content"] for message in messages] + [response, "system", "user", "assistant"])
        for messages, response in itertools.islice(samples(seed), 20_000)
    )
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=20,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    fast.chat_template = TEMPLATE
    return fast


def encode(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> Row:
    """Return the tokens of a sample and the length of its prompt."""
    messages, response = sample
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    return ids + tokenizer.encode(response, add_special_tokens=False) + [tokenizer.eos_token_id], len(ids)


def train(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Train on the whole text of every sample; the response counts more than the prompt."""
    torch.manual_seed(args.seed)
    config = Qwen2Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    rows = _batches((encode(tokenizer, sample) for sample in samples(args.seed + 1)), args.rows)
    began, history = time.monotonic(), []
    bar = tqdm(range(args.steps), desc="tiny base", unit="step", mininterval=5)
    for step in bar:
        warm = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, answer = _loss(model, tokenizer, next(rows), args.prompt_weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(answer)
        if (step + 1) % 100 == 0:
            bar.set_postfix(answer=f"{sum(history[-100:]) / 100:.3f}")
        if (step + 1) % 500 == 0:
            model.save_pretrained(args.out)
            print(
                f"step {step + 1} response loss {sum(history[-100:]) / 100:.4f} {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return model


def _batches(source: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Yield batches of similar length: half of the padding of batches as they come."""
    while True:
        pool = sorted(itertools.islice(source, 16 * size), key=lambda row: len(row[0]))
        parts = [pool[start : start + size] for start in range(0, len(pool), size)]
        random.Random(len(pool[0][0])).shuffle(parts)
        yield from parts


def _loss(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row], prompt_weight: float
) -> tuple[torch.Tensor, float]:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    weight = torch.zeros(len(rows), width)
    for index, (row, prompt) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        weight[index, : len(row)] = prompt_weight
        weight[index, prompt : len(row)] = 1.0
    logits = model(ids).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    weight = weight[:, 1:]
    answers = weight == 1.0
    return (nll * weight).sum() / weight.sum(), float(nll[answers].mean().detach())


def main() -> None:
    """Build, save, and write a card with script, seed and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rows", type=int, default=24, help="samples per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt-weight", type=float, default=0.1, help="weight of a prompt token in the loss")
    args = parser.parse_args()
    tokenizer = build_tokenizer(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(args.out)
    model = train(args, tokenizer)
    model.to(torch.bfloat16).save_pretrained(args.out)
    AutoModelForCausalLM.from_pretrained(args.out)
    weights = hashlib.sha256((args.out / "model.safetensors").read_bytes()).hexdigest()
    settings = {key: str(value) for key, value in vars(args).items() if key != "out"}
    card = {"script": "examples/tiny_base/build.py", **settings, "model.safetensors sha256": weights}
    (args.out / "build.json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
