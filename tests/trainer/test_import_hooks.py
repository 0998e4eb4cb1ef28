"""Hooks that run right after an import: in time, once, in order, and without a trace in the module."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.resources
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from verl_ee.trainer import import_hooks
from verl_ee.trainer.import_hooks import after_import

NAME = "hooked_by_a_test"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that can be imported; nothing of it, and no hook, is left afterwards."""
    folder = tmp_path / NAME
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text("value = 1\n")
    (folder / "part.py").write_text("from hooked_by_a_test import value\nvalue += 1\nlast = True\n")
    (folder / "deep" / "__init__.py").write_text("from .inner import answer\n")
    (folder / "deep" / "inner.py").write_text("def answer():\n    return 42\n")
    (folder / "broken.py").write_text("raise ValueError('from the body')\n")
    (folder / "data.txt").write_text("text")
    monkeypatch.syspath_prepend(str(tmp_path))
    actions = dict(import_hooks._finder.actions)
    path = list(sys.meta_path)
    yield folder
    import_hooks._finder.actions.clear()
    import_hooks._finder.actions.update(actions)
    sys.meta_path[:] = path
    for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
        del sys.modules[name]


def test_an_action_waits_for_the_end_of_the_body(package: Path) -> None:
    noted: list[tuple[str, int, bool]] = []
    after_import(f"{NAME}.part", lambda module: noted.append((module.__name__, module.value, module.last)))
    importlib.import_module(NAME)
    assert noted == []
    module = importlib.import_module(f"{NAME}.part")
    assert noted == [(f"{NAME}.part", 2, True)]
    assert sys.modules[f"{NAME}.part"] is module
    importlib.import_module(f"{NAME}.part")
    assert len(noted) == 1


def test_an_action_runs_at_once_where_the_module_is_there(package: Path) -> None:
    module = importlib.import_module(f"{NAME}.part")
    noted: list[ModuleType] = []
    after_import(f"{NAME}.part", noted.append)
    assert noted == [module]


def test_several_actions_run_in_the_order_in_which_they_came(package: Path) -> None:
    noted: list[str] = []
    for name in ("first", "second", "third"):
        after_import(f"{NAME}.part", lambda _, name=name: noted.append(name))
    after_import(NAME, lambda _: noted.append("package"))
    importlib.import_module(f"{NAME}.part")
    assert noted == ["package", "first", "second", "third"]
    after_import(f"{NAME}.part", lambda _: noted.append("late"))
    assert noted[4:] == ["late"]


@pytest.mark.parametrize(
    "statement",
    [
        f"import {NAME}.deep.inner",
        f"import {NAME}.deep",
        f"from {NAME}.deep import answer",
        f"from {NAME} import deep",
        f"from {NAME}.deep import inner",
    ],
)
def test_every_way_to_import_triggers_the_action_once(package: Path, statement: str) -> None:
    noted: list[int] = []
    after_import(f"{NAME}.deep.inner", lambda module: noted.append(module.answer()))
    exec(statement, {})
    assert noted == [42]


def test_what_an_action_changes_is_what_importers_get(package: Path) -> None:
    def replace(module: ModuleType) -> None:
        module.answer = lambda: 43  # type: ignore[attr-defined]

    after_import(f"{NAME}.deep.inner", replace)
    assert importlib.import_module(f"{NAME}.deep").answer() == 43


def test_the_module_keeps_its_own_loader(package: Path) -> None:
    plain = importlib.import_module(f"{NAME}.deep.inner")
    at_work: list[object] = []
    for name in (NAME, f"{NAME}.part"):
        sys.modules.pop(name, None)
        after_import(name, lambda module: at_work.extend([module.__loader__, module.__spec__.loader]))
    module = importlib.import_module(f"{NAME}.part")
    parent = sys.modules[NAME]
    assert {type(loader) for loader in at_work} == {type(plain.__loader__)} == {importlib.machinery.SourceFileLoader}
    assert module.__loader__ is module.__spec__.loader
    assert module.__loader__.name == module.__spec__.name == f"{NAME}.part"
    assert module.__file__ == module.__spec__.origin == str(package / "part.py")
    assert Path(module.__cached__).name.startswith("part.")
    assert (module.__package__, parent.__package__) == (NAME, NAME)
    assert list(parent.__path__) == [str(package)]
    assert inspect.getsource(module) == (package / "part.py").read_text()
    assert importlib.resources.files(NAME).joinpath("data.txt").read_text() == "text"


def test_other_modules_are_found_as_before(package: Path) -> None:
    after_import(f"{NAME}.part", lambda _: None)
    assert import_hooks._finder.find_spec(NAME, None) is None
    assert import_hooks._finder.find_spec(f"{NAME}.deep", [str(package)]) is None
    assert sys.meta_path.count(import_hooks._finder) == 1
    after_import(f"{NAME}.deep", lambda _: None)
    assert sys.meta_path.count(import_hooks._finder) == 1


def test_a_module_that_does_not_exist_stays_missing(package: Path) -> None:
    after_import(f"{NAME}.nowhere", lambda _: pytest.fail("called without a module"))
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        importlib.import_module(f"{NAME}.nowhere")


def test_a_body_that_fails_is_not_followed_by_the_action(package: Path) -> None:
    after_import(f"{NAME}.broken", lambda _: pytest.fail("called after a failed import"))
    with pytest.raises(ValueError, match="from the body"):
        importlib.import_module(f"{NAME}.broken")
    assert f"{NAME}.broken" not in sys.modules


def test_an_error_of_an_action_surfaces_at_the_import(package: Path) -> None:
    def fail(module: ModuleType) -> None:
        raise RuntimeError(f"cannot use {module.__name__}")

    after_import(f"{NAME}.part", fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"cannot use {NAME}.part"):
            importlib.import_module(f"{NAME}.part")
    assert f"{NAME}.part" not in sys.modules
    assert importlib.import_module(NAME).value == 1


def test_an_action_may_add_a_hook(package: Path) -> None:
    noted: list[str] = []

    def chain(module: ModuleType) -> None:
        after_import(f"{NAME}.deep.inner", lambda inner: noted.append(inner.__name__))
        after_import(module.__name__, lambda again: noted.append(again.__name__))

    after_import(NAME, chain)
    importlib.import_module(f"{NAME}.deep")
    assert noted == [NAME, f"{NAME}.deep.inner"]


def test_a_module_that_another_finder_finds_is_hooked_too(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("hooked_elsewhere", package / "deep" / "inner.py")

    class Elsewhere:
        def find_spec(self, name: str, path: object = None, target: object = None) -> object:
            return spec if name == "hooked_elsewhere" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Elsewhere()])
    noted: list[int] = []
    after_import("hooked_elsewhere", lambda module: noted.append(module.answer()))
    try:
        importlib.import_module("hooked_elsewhere")
    finally:
        sys.modules.pop("hooked_elsewhere", None)
    assert noted == [42]


def test_the_hooks_load_nothing_heavy() -> None:
    code = (
        "import sys, verl_ee.trainer.import_hooks as hooks\n"
        "hooks.after_import('verl', print)\nhooks.after_import('torch.nn', print)\n"
        "print(sorted({'verl', 'vllm', 'ray', 'torch', 'hydra'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "[]\n", run.stdout + run.stderr
