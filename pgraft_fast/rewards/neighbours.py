"""A user's file with the modules beside it, kept apart from all others.

The file's folder becomes a package under a name of its own, and code that comes from it imports through an `__import__`
of its own: there `import helper` and `from .helper import x` find helper.py beside the file, while sys.path and other
modules stay as they are, and files of one name in two folders are two modules. The standard library, and installed
packages that are imported already, come first; then the folder; then what else is installed.
"""

import builtins
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_INSTALLED = {"site-packages", "dist-packages"}


def load_file(path: Path) -> ModuleType:
    """Run a file, and what it imports from beside it, anew. Returns its module; raises what it raises."""
    path = path.resolve()
    beside = _Beside(path)
    importlib.invalidate_caches()
    sys.meta_path[:] = [beside, *(finder for finder in sys.meta_path if getattr(finder, "root", None) != beside.root)]
    for name in beside.modules():
        del sys.modules[name]
    beside.add_packages()
    name = f"{beside.package}.{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, str(path), beside))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class _Beside:
    """The folder of a file: a finder of modules under `root`, and the `__import__` of their code.

    package: the folder's name under root. Where folders above it are packages, they are named in between, so that
    relative imports reach them; no __init__.py of theirs is run.
    """

    def __init__(self, path: Path) -> None:
        self.folder, above = path.parent, path.parent
        while (above / "__init__.py").is_file():
            above = above.parent
        self.root = f"pgraft_fast_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
        self._places = {self.root: above}
        for part in self.folder.relative_to(above).parts:
            above = above / part
            self._places[f"{[*self._places][-1]}.{part}"] = above
        self.package = [*self._places][-1]
        self.builtins = {**vars(builtins), "__import__": self._import}

    def modules(self) -> list[str]:
        """Names of what was loaded."""
        return [name for name in sys.modules if name.partition(".")[0] == self.root]

    def add_packages(self) -> None:
        for name, place in self._places.items():
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(place)]
            sys.modules[name] = importlib.util.module_from_spec(spec)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Of a module under root; for the import system."""
        if name.partition(".")[0] != self.root:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(name, spec.loader.path, self)
        return spec

    def _import(
        self, name: str, globals: Mapping[str, Any] | None = None, locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] = (), level: int = 0,
    ) -> ModuleType:  # fmt: skip
        top = name.partition(".")[0]
        if level or not self._has(top):
            return builtins.__import__(name, globals, locals, fromlist, level)
        module = builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist, 0)
        return module if fromlist else sys.modules[f"{self.package}.{top}"]

    def _has(self, top: str) -> bool:
        file = getattr(sys.modules.get(top), "__file__", None)
        if top in sys.stdlib_module_names or (file and not _INSTALLED.isdisjoint(Path(file).parts)):
            return False
        spec = PathFinder.find_spec(top, [str(self.folder)])
        # A folder without __init__.py may hold data, and comes last.
        return spec is not None and (spec.origin is not None or (top not in sys.modules and not _is_known(top)))


def _is_known(top: str) -> bool:
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, beside: _Beside) -> None:
        super().__init__(name, path)
        self._beside = beside

    def path_stats(self, path: str) -> Mapping[str, Any]:
        """No bytecode: what was kept of a file that changed within the second would be taken for it."""
        raise OSError

    def exec_module(self, module: ModuleType) -> None:
        """Functions see the builtins of the module that they are written in."""
        module.__dict__["__builtins__"] = self._beside.builtins
        super().exec_module(module)
