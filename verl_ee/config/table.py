"""The tables of keys in docs/configuration.md, written from the schema by `python -m verl_ee.config.table`."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from verl_ee.config.models import EarlyExperienceConfig
from verl_ee.errors import ConfigError

COMMAND = "python -m verl_ee.config.table"
PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
BEGIN, END = f"<!-- keys: begin, written by `{COMMAND}` -->", "<!-- keys: end -->"
NAMES = {"collect": "<set>"}
"""Placeholder of a user's own name under a key; under every other key it is `<name>`."""


def tables() -> str:
    """Return one table for the top of `early_experience`, and one with a heading for each group below it."""
    return "\n\n".join(_section(path, model, about) for path, model, about in _groups(EarlyExperienceConfig))


def with_tables(page: str) -> str:
    """Return the text of a page with new tables between its two marks.

    Raises:
        ConfigError: if the page does not have each mark once, in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ConfigError(f"The page needs the line {BEGIN!r} once, and the line {END!r} once below it. Restore them.")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the tables of the page, or with `--check` compare them, and return the exit status."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the tables are not up to date")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/configuration.md of this checkout")
    args = parser.parse_args(argv)
    try:
        before = args.page.read_text(encoding="utf-8")
        after = with_tables(before)
    except (OSError, ConfigError) as error:
        print(f"{args.page}: {error}", file=sys.stderr)
        return 1
    if not args.check:
        args.page.write_text(after, encoding="utf-8")
    elif before != after:
        print(f"{args.page} does not match the schema. Run {COMMAND}.", file=sys.stderr)
        return 1
    return 0


def _groups(model: type[BaseModel], path: str = "", about: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """Yield a model and all models below it, each with its path and with the description of the key that leads to it.

    Args:
        model: the uppermost model.
        path: keys that lead to it.
        about: description of the last of these keys.
    """
    yield path, model, about
    for name, field in model.model_fields.items():
        below = _model_of(field)
        if below is not None:
            users_name = f".{NAMES.get(name, '<name>')}" if get_origin(field.annotation) is dict else ""
            yield from _groups(below, _joined(path, name) + users_name, field.description or "")


def _section(path: str, model: type[BaseModel], about: str) -> str:
    rows = [
        f"| `{_joined(path, name)}` | {_default(field)} | {_one_line(field.description or '')} |"
        for name, field in model.model_fields.items()
        if _model_of(field) is None
    ]
    table = "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])
    if not path:
        return table
    introduction = " ".join(filter(None, [inspect.getdoc(model), about]))
    return f"### `{path}`\n\n{_one_line(introduction)}\n\n{table}"


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a group of keys or, where users name such groups, of each of them; None for a value."""
    annotation = field.annotation
    if get_origin(annotation) is dict:
        annotation = get_args(annotation)[1]
    return annotation if inspect.isclass(annotation) and issubclass(annotation, BaseModel) else None


def _default(field: FieldInfo) -> str:
    """Return the default of a key as a user would write it on the command line."""
    if field.is_required():
        return "**required**"
    default = field.get_default(call_default_factory=True)
    is_text = isinstance(default, str) and default
    return "`" + (default.replace("\n", r"\n") if is_text else json.dumps(default)) + "`"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


if __name__ == "__main__":
    raise SystemExit(main())
