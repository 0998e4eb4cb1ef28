"""Tokens that the server of a writer reads and writes: counted in a file, and held below a limit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from verl_ee.errors import StoreError
from verl_ee.experience.files.atomic import write_json
from verl_ee.experience.files.versions import FileFormat, read_versioned_json

LEDGER = FileFormat(1, StoreError, "does not say what was spent", "Delete it to count from zero.")


@dataclass(frozen=True)
class Spending:
    """Tokens of all requests that were answered.

    Attributes:
        prompt_tokens: read by the server.
        completion_tokens: written by it.
    """

    prompt_tokens: int
    completion_tokens: int

    @property
    def total(self) -> int:
        """Tokens of both kinds."""
        return self.prompt_tokens + self.completion_tokens


class TokenLedger:
    """Spending of one writer over all repetitions of a command, and the tokens that requests under way may take.

    Attributes:
        spent: so far.
    """

    def __init__(self, path: Path | None, limit: int | None) -> None:
        """Read what was spent before.

        Args:
            path: file of the ledger, which may not exist yet; None keeps none.
            limit: tokens after which no request is made; None: no limit.

        Raises:
            StoreError: if the file is broken or of another version.
        """
        self._path, self._limit = path, limit
        self.spent = Spending(0, 0)
        if path is not None and path.exists():
            self.spent = read_versioned_json(path, Spending, LEDGER)
        self._reserved = 0

    @property
    def allows_request(self) -> bool:
        """Whether one more request cannot take more than the tokens of one request above the limit."""
        if self._limit is None or not self._reserved:
            return True
        return self.spent.total + self._reserved < self._limit

    def reserve(self, tokens: int) -> None:
        """Reserve the most tokens that a request may take, before it is made."""
        self._reserved += tokens

    def release(self, tokens: int) -> None:
        """Give back the reservation of a request that has ended."""
        self._reserved -= tokens

    def add(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Add the tokens of an answer, and write the ledger.

        Raises:
            WriteError: if the disk is full.
        """
        spent = self.spent
        self.spent = Spending(spent.prompt_tokens + prompt_tokens, spent.completion_tokens + completion_tokens)
        if self._path is not None:
            write_json(self._path, {"schema": LEDGER.version, **asdict(self.spent)})
