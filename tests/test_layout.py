"""Who may import whom: read from the source, and once from what an import really loads."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import verl_ee

ROOT = Path(verl_ee.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))
ORDER = ("errors", "config", "envs", "prompts", "experience", "objectives", "run", "report", "trainer", "plugin", "cli")
"""Rooms from the lowest to the highest; `report` and `trainer` stand side by side."""
BELOW = {room: set(ORDER[:index]) for index, room in enumerate(ORDER)}
BELOW["envs"] -= {"config"}
BELOW["trainer"] -= {"report"}
BELOW["plugin"] -= {"report"}
"""What each room may import besides itself."""
HEAVY = {
    "verl": ["trainer/"],
    "vllm": ["trainer/"],
    "ray": ["trainer/", "experience/branching/workers.py"],
    "torch": ["trainer/", "objectives/loss.py"],
}
"""Where a heavy package may be imported."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in it, also by `import_module`."""
    package = ["verl_ee", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (value.value for value in node.args[:1] if isinstance(value, ast.Constant))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_the_reader_of_imports_sees_all_forms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "experience" / "x.py"
    path.parent.mkdir()
    path.write_text(
        "import a.b as c, d\nfrom e.f import g\nfrom . import h\nfrom ..envs import i\n"
        "def late():\n    import torch\n    importlib.import_module('ray.util')\n"
    )
    expected = ["a.b", "d", "e.f.g", "verl_ee.experience.h", "verl_ee.envs.i", "torch", "ray.util"]
    assert sorted(imports(path)) == sorted(expected)


def test_every_room_is_on_the_plan() -> None:
    assert {room_of(path) for path in FILES} - {"__init__"} <= set(BELOW)
    assert len(FILES) > 30


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_what_lies_below(path: Path) -> None:
    room = room_of(path)
    used = {name.split(".")[1] for name in imports(path) if name.startswith("verl_ee.")}
    allowed = BELOW.get(room, set()) | {room}
    assert used & set(BELOW) <= allowed
    assert used <= set(BELOW) | set(vars(verl_ee))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_heavy_packages_are_imported_only_in_their_places(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    for package, places in HEAVY.items():
        if not any(name_of(path).startswith(place) for place in places):
            assert package not in roots


LIGHT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(sorted({name.split(".")[0] for name in sys.modules} & {"verl", "vllm", "ray", "torch"}))
"""


def test_importing_the_lower_rooms_loads_nothing_heavy() -> None:
    heavy = {name_of(path) for path in FILES for places in HEAVY.values() if name_of(path) in places}
    light = [path for path in FILES if room_of(path) in set(BELOW) - {"trainer", "plugin", "cli"}]
    modules = [f"verl_ee.{name_of(path)[:-3].replace('/', '.')}" for path in light if name_of(path) not in heavy]
    assert {
        "verl_ee.experience.branching.host",
        "verl_ee.experience.collecting.collection",
        "verl_ee.objectives.examples",
    } <= set(modules)
    run = subprocess.run([sys.executable, "-c", LIGHT, *modules], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stdout + run.stderr


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: path.relative_to(ROOT.parent).as_posix())
def test_a_file_says_what_it_is_and_stays_short(path: Path) -> None:
    docstring = (ast.get_docstring(ast.parse(path.read_text())) or "").strip()
    assert len(docstring) > 10
    assert lines_of(path) <= (300 if path in FILES else 400)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_function_fits_a_screen(path: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, FUNCTIONS)]
    assert {node.name: size for node in functions if (size := node.end_lineno - node.lineno + 1) > 60} == {}


def test_a_folder_has_few_modules() -> None:
    counts = Counter(path.parent for path in FILES)
    assert {name_of(folder): count for folder, count in counts.items() if count > 14} == {}


def test_files_and_functions_are_short_in_the_median() -> None:
    functions = [
        node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, FUNCTIONS)
    ]
    assert statistics.median(map(lines_of, FILES)) <= 118
    assert statistics.median(functions) <= 7


def annotations(path: Path) -> Iterator[ast.expr]:
    """Annotations of arguments, returned values, attributes and variables in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, FUNCTIONS):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            yield from (argument.annotation for argument in every if argument is not None and argument.annotation)
            yield from filter(None, [node.returns])
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


def says_any(annotation: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(annotation))


def test_types_say_more_than_any() -> None:
    every = [annotation for path in FILES for annotation in annotations(path)]
    assert len(every) > 1000
    assert sum(map(says_any, every)) <= 0.05 * len(every)
