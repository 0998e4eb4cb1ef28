"""Checks that the installed packages still have what verl_ee relies on."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect

from verl_ee.config.base import ROOT
from verl_ee.trainer.cpu import HURDLES, active
from verl_ee.trainer.upstream.names import UpstreamName

PACKAGES = ("verl", "vllm", "ray", "torch", "transformers", "TransferQueue", "tensordict", "gymnasium", "hydra-core")
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
"""Packages whose builds on the package index need CUDA, and break transformers next to a CPU build of torch."""


def problem_with(name: UpstreamName) -> str:
    """Return how a name differs from what verl_ee relies on, or an empty string."""
    try:
        value: object = importlib.import_module(name.module)
    except Exception as error:  # an upstream module may fail to import in any way
        return f"cannot be imported: {type(error).__name__}: {error}".splitlines()[0]
    for part in name.path.split("."):
        if not hasattr(value, part):
            return f"has no {part!r}"
        value = getattr(value, part)
    if not name.parameters or not callable(value):
        return ""
    accepted = inspect.signature(value).parameters
    accepts_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    missing = [parameter for parameter in name.parameters if parameter not in accepted and not accepts_any]
    return f"takes no {', '.join(missing)}; takes {', '.join(accepted)}" if missing else ""


def versions() -> dict[str, str]:
    """Return the installed version of every package that matters, or `missing`."""
    return {package: _version(package) or "missing" for package in PACKAGES}


def conflicts() -> list[str]:
    """Return installed packages that break a CPU build of torch."""
    import torch

    if torch.version.cuda is not None or not active():
        return []
    return [package for package in CUDA_ONLY if _version(package) is not None]


def registered() -> dict[str, str]:
    """Return the flags, platforms and hurdles that are registered in this process, as text, by what they are."""
    from hydra.core.config_store import ConfigStore
    from verl.plugin.platform import PlatformRegistry

    stored = (name.removesuffix(".yaml") for name in ConfigStore.instance().repo.get(ROOT, {}))
    flags = [name for name in stored if name != "flag"]
    hurdles = (
        ", ".join(hurdle.clear.__name__ for hurdle in HURDLES) if active() else "none (VERL_PLATFORM=cpu is not set)"
    )
    return {
        "flag +early_experience=": ", ".join(sorted(flags)) or "missing: the plugin verl_ee was not loaded",
        "verl platforms": ", ".join(PlatformRegistry.registered_names()),
        "CPU platform clears": hurdles,
    }


def _version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
