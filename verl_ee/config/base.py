"""Common ground of all models of keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ROOT = "early_experience"
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class FrozenModel(BaseModel):
    """Keys that cannot be changed, whose docstrings are their descriptions; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
