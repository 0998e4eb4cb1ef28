"""The settings of `recipes/cpu.sh` for a job on this machine."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/tiny_base/model"


@dataclass(frozen=True)
class Settings:
    """Settings of a job.

    Attributes:
        environ: the whole environment of its processes.
        overrides: of verl's configuration.
    """

    environ: dict[str, str]
    overrides: tuple[str, ...]


def cpu() -> Settings:
    """Return the settings of a verl job on a machine without an accelerator."""
    script = 'source recipes/cpu.sh && env -0 && printf "\\0" && printf "%s\\0" "${CPU[@]}"'
    output = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    environ, _, overrides = output.partition("\0\0")
    pairs = (line.partition("=") for line in environ.split("\0"))
    return Settings({key: value for key, _, value in pairs}, tuple(filter(None, overrides.split("\0"))))
