"""A game that cannot always be made, as one whose server is not up yet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.games import SavedTrouble, register


class Reluctant(SavedTrouble):
    """A game that some attempts to make it fail to make.

    Args:
        makings: folder that gets a file for each attempt.
        refused: numbers of the attempts that fail.
        ends_process: whether such an attempt ends the process, and does not raise.
    """

    def __init__(self, makings: str, refused: Sequence[int] = (), ends_process: bool = False, **values: Any) -> None:
        number = len(list(Path(makings).iterdir()))
        (Path(makings) / str(number)).touch()
        if number in refused:
            if ends_process:
                os._exit(3)
            raise ConnectionError("the server is not up")
        super().__init__(**values)


register(Reluctant)
