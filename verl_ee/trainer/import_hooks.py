"""Actions that run right after a module has been imported, without importing it.

verl loads plugins in every process, most of which never need the heavy modules that a plugin adds to. A hook keeps
the plugin light and runs in time for everybody who imports the module later.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

Action = Callable[[ModuleType], None]


class _Loader(importlib.abc.Loader):
    """Loads a module with its own loader, then runs the actions."""

    def __init__(self, loader: importlib.abc.Loader, actions: list[Action]) -> None:
        self._loader, self._actions = loader, actions

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        for action in self._actions:
            action(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders find a module that has actions, and puts `_Loader` in front of its loader."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        actions = self.actions.get(fullname)
        if not actions:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, actions)
                return spec
        return None


_finder = _Finder()


def after_import(name: str, action: Action) -> None:
    """Call `action(module)` once `name` is imported: now if it is, else right after its body has run.

    Args:
        name: absolute module name.
        action: receives the module. An exception in it surfaces at the import that triggered it.
    """
    if name in sys.modules:
        action(sys.modules[name])
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.actions.setdefault(name, []).append(action)
