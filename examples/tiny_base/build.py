"""Build the tiny base model and its tokenizer from scratch, on generated text.

    python examples/tiny_base/build.py --out examples/tiny_base/model

The result is a Hugging Face folder in Qwen2 form. It stands in for a pre-trained model where none can be downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from corpus import Sample, passages, samples, texts
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPACE = "\u0120"
"""A space in a byte-level vocabulary."""
END, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
TEMPLATE = Path(__file__).with_name("template.jinja")
LONGEST = 4096
QWEN2_PARTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
COPYING_LOSS = 1.27
"""Loss of `passages` at which everything else begins: a model of this size finds out how to copy only from a text that
asks for nothing else. A passage begins and ends by chance, so its loss does not fall below 1.25."""
Row = tuple[torch.Tensor, torch.Tensor]
"""Token ids of a conversation, and whether each is the assistant's own."""


def build_tokenizer(seed: int, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which the words of the generated text are one token each, but for invented ones."""
    tokenizer = Tokenizer(models.BPE())
    # The pattern of Qwen2: transformers gives it to every tokenizer beside a model of that type.
    parts = pre_tokenizers.Split(Regex(QWEN2_PARTS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([parts, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(seed, 20_000), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    fast.chat_template = TEMPLATE.read_text()
    return fast


@torch.no_grad()
def relate_forms(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Begin with forms of one word (`go`, ` go`, `>go`) that differ by what their first characters have in common.

    A large model finds that out from much text. Here most words begin a line, where they have no space before them, and
    are said again behind one: without the relation each word's pair would have to be learned alone.
    """
    weight, firsts = model.get_input_embeddings().weight, dict[str, torch.Tensor]()
    vocabulary = tokenizer.get_vocab()
    for token, index in sorted(vocabulary.items()):
        word = vocabulary.get(token[1:])
        if len(token) > 2 and word is not None and (token[0] == SPACE or not token[0].isalnum()):
            first = firsts.setdefault(token[0], torch.randn_like(weight[0]) * weight.std())
            weight[index] = weight[word] + first


class Encoder:
    """Encodes samples; the assistant's own tokens are those behind its header, with the end of its turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Encode with the template of a tokenizer."""
        self._tokenizer = tokenizer
        self._start, self._end = tokenizer.convert_tokens_to_ids([START, END])
        self._header = tokenizer.encode(f"{START}assistant\n", add_special_tokens=False)

    def __call__(self, sample: Sample) -> Row:
        """Return token ids and mask of a sample."""
        text = self._tokenizer.apply_chat_template(sample.messages, tools=sample.tools, tokenize=False)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        own = torch.zeros(len(ids), dtype=torch.bool)
        for at in (index for index, token in enumerate(ids) if token == self._start):
            if ids[at : at + len(self._header)] == self._header:
                own[at + len(self._header) : ids.index(self._end, at) + 1] = True
        return torch.tensor(ids), own


def batches(rows: Iterator[Row], tokens: int) -> Iterator[list[Row]]:
    """Yield batches of rows of like length, with at most `tokens` tokens after padding."""
    fitting = (row for row in rows if len(row[0]) <= LONGEST)
    while True:
        pool = sorted(islice(fitting, 512), key=lambda row: len(row[0]))
        made: list[list[Row]] = [[]]
        for row in pool:
            if made[-1] and (len(made[-1]) + 1) * len(row[0]) > tokens:
                made.append([])
            made[-1].append(row)
        random.Random(len(made)).shuffle(made)
        yield from made


def loss_of(model: Qwen2ForCausalLM, rows: list[Row], prompt_share: float) -> tuple[torch.Tensor, float]:
    """Return the loss of a step, and that of the assistant's tokens alone.

    Of the other tokens a share that is drawn anew is learned too, with a tenth of the weight.
    """
    width = max(len(ids) for ids, _ in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    weight = torch.zeros((len(rows), width))
    for index, (tokens, own) in enumerate(rows):
        ids[index, : len(tokens)] = tokens
        weight[index, : len(tokens)] = torch.where(own, 1.0, 0.1 * (torch.rand(len(tokens)) < prompt_share))
    targets, weight = ids[:, 1:], weight[:, 1:]
    learned = weight > 0
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[learned]
    nll = cross_entropy(model.lm_head(hidden).float(), targets[learned], reduction="none")
    weight = weight[learned]
    return (nll * weight).sum() / weight.sum(), float(nll[weight == 1.0].mean().detach())


def new_model(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Return a model that knows nothing."""
    torch.manual_seed(args.seed)
    config = Qwen2Config(
        vocab_size=math.ceil(len(tokenizer) / 64) * 64,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    relate_forms(model, tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}")
    return model


def train(model: Qwen2ForCausalLM, lessons: Lessons, steps: int, warmup: int, args: argparse.Namespace) -> None:
    """Train on generated samples, none of which is seen twice, and save the model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    began, history = time.monotonic(), []
    bar = tqdm(range(steps), desc="tiny base", unit="step", mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / warmup, 1.5 * (1 - step / steps) + 0.02)
        loss, own = loss_of(model, lessons.batch(), args.prompt_share)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(own)
        lessons.note(own)
        if (step + 1) % 100 == 0:
            bar.set_postfix(own=f"{sum(history[-100:]) / 100:.3f}")
        if (step + 1) % 500 == 0:
            print(f"step {step + 1} loss {sum(history[-100:]) / 100:.4f} {time.monotonic() - began:.0f} s", flush=True)
    if not lessons.copies:
        raise SystemExit(f"The model has not found out how to copy in {steps} steps. Try another --seed.")
    model.to(torch.bfloat16).save_pretrained(args.out)


class Lessons:
    """The batches of a training: copying alone until it is learned, and then everything.

    Attributes:
        copies: whether copying is learned.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, tokens: int, copies: bool) -> None:
        """Begin with copying, unless the model copies.

        Args:
            tokenizer: tokenizer of the model.
            seed: seed of what is drawn.
            tokens: tokens of a batch of everything.
            copies: whether the model can copy; then most samples are of the household.
        """
        encode = Encoder(tokenizer)
        self._copying = batches(map(encode, passages(seed, 16)), 2048)
        self._everything = batches(map(encode, samples(seed, household=copies)), tokens)
        self._losses: list[float] = []
        self.copies = copies

    def batch(self) -> list[Row]:
        """Return the next batch."""
        return next(self._everything if self.copies else self._copying)

    def note(self, loss: float) -> None:
        """Note the loss of the batch."""
        if self.copies:
            return
        self._losses.append(loss)
        recent = sum(self._losses[-50:]) / 50
        self.copies = len(self._losses) >= 50 and recent < COPYING_LOSS
        if self.copies:
            print(f"copies after {len(self._losses)} steps, with the loss {recent:.3f}", flush=True)


def main() -> None:
    """Build, save, and write a card with script, seed and hash."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6500, help="copying, then everything")
    parser.add_argument("--household-steps", type=int, default=2500, help="then mostly lists of the household")
    parser.add_argument("--tokens", type=int, default=6144, help="tokens per step, with padding")
    parser.add_argument("--vocabulary", type=int, default=1280)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt-share", type=float, default=0.2, help="share of the other tokens that is learned")
    args = parser.parse_args()
    tokenizer = build_tokenizer(args.seed, args.vocabulary)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(args.out)
    train(new_model(args, tokenizer), Lessons(tokenizer, args.seed + 1, args.tokens, False), args.steps, 100, args)
    torch.manual_seed(args.seed)
    model = Qwen2ForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    train(model, Lessons(tokenizer, args.seed + 2, args.tokens, True), args.household_steps, 50, args)
    weights = hashlib.sha256((args.out / "model.safetensors").read_bytes()).hexdigest()
    settings = {key: str(value) for key, value in vars(args).items() if key != "out"}
    card = {"script": "examples/tiny_base/build.py", **settings, "model.safetensors sha256": weights}
    (args.out / "build.json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main()
