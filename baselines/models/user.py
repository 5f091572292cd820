"""Models of the user's own: a function in a file or a module, or an entry point of a package.

The function is (features, depth) -> Flow, for white data. Attributes of it may say more, each as in
``model.Model``: ``label``, ``depths``, ``unit``, ``steps``, ``quick_steps``, ``learning_rate``,
``warmup``, ``objective``, ``batch_size``. With a third argument ``hidden`` its widths can be chosen
for it. In place of a function a ``model.Model`` will do.

    # mine.py; cflows compare --models maf mine.py:deep
    from baselines import MAF

    def deep(features, depth):
        return MAF(features, layers=depth, hidden=(32,) * 4)

    deep.depths = (3,)
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from dataclasses import fields, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from baselines.models.model import Model, ModelError
from cflows.core.arguments import nearest

__all__ = ["GROUP", "entered", "imported", "installed", "located"]

GROUP = "cflows.models"
WARMUP = 100  # as MAF's


def imported(name: str) -> Model:
    """Return the model behind ``file.py:function`` or ``module:function``.

    Raises:
        ModelError: there is no such file, module or function, or it cannot be imported.

    """
    path, _, function = name.rpartition(":")
    if not path or not function.isidentifier():
        raise ModelError(f"{name!r} is no model: write FILE.py:FUNCTION or MODULE:FUNCTION")
    module = _file(Path(path)) if _is_file(path) else _module(path)
    if not hasattr(module, function):
        own = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        raise ModelError(
            f"{path} has no function {function!r}; {nearest(function, own)}it has "
            f"{', '.join(own) or 'none'}"
        )
    return _with_text(_model(getattr(module, function), name), module)


def located(name: str) -> tuple[str, str]:
    """Return what tables call a model, and the name that finds it from any folder.

    Example:
        >>> located("maf")
        ('maf', 'maf')

    """
    path, _, function = name.rpartition(":")
    if not path or not _is_file(path):
        return name, name
    return f"{Path(path).name}:{function}", f"{Path(path).resolve()}:{function}"


def installed() -> dict[str, EntryPoint]:
    """Return the entry points of installed packages, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def entered(entry: EntryPoint) -> Model:
    """Return the model behind an entry point.

    Raises:
        ModelError: it cannot be imported, or is no model.

    """
    try:
        model = _model(entry.load(), entry.name)
    except ModelError:
        raise
    except Exception as error:  # whatever a package does when it is imported
        raise _broken(f"the entry point {entry.name!r} ({entry.value})", error) from error
    module = sys.modules.get(entry.module)
    return model if module is None else _with_text(model, module)


def _model(core: object, name: str) -> Model:
    if isinstance(core, Model):
        return core
    if not callable(core):
        kind = type(core).__name__
        raise ModelError(f"{name} is a {kind}, not a function (features, depth) -> Flow")
    said = {
        field.name: getattr(core, field.name)
        for field in fields(Model)
        if field.name not in ("core", "text") and hasattr(core, field.name)
    }
    if "depths" in said:
        said["depths"] = tuple(said["depths"])
    return Model(core=core, **{"label": name.rpartition(":")[2], "warmup": WARMUP, **said})


def _is_file(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


def _file(path: Path) -> ModuleType:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}); a model of your own is FILE.py:FUNCTION "
            "or MODULE:FUNCTION"
        ) from error
    return _executed(path.resolve(), hashlib.sha256(content).hexdigest())


@functools.cache
def _executed(path: Path, digest: str) -> ModuleType:
    """Run a file as a module, once for each content of it."""
    # Its own name, which saved flows carry, unless another module has it.
    name = path.stem
    there = getattr(sys.modules.get(name), "__file__", None)
    if name in sys.modules and (there is None or Path(there).resolve() != path):
        name = f"{name}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path}: is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    _look_in(path.parent)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file does
        del sys.modules[name]
        raise _broken(str(path), error) from error
    return module


def _module(name: str) -> ModuleType:
    _look_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ModelError(
                f"no module is called {name!r}: run the command in its folder, or name the file, "
                "as in FILE.py:FUNCTION"
            ) from error
        raise _broken(name, error) from error
    except Exception as error:
        raise _broken(name, error) from error


def _look_in(folder: Path) -> None:
    """Let what stands beside the user's file be imported, behind all else."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _with_text(model: Model, module: ModuleType) -> Model:
    """The model with a hash of its module, which shows what constructors' arguments do not."""
    path = getattr(module, "__file__", None)
    if path is None or not os.path.isfile(path):
        return model
    return replace(model, text=model.text + hashlib.sha256(Path(path).read_bytes()).hexdigest())


def _broken(what: str, error: Exception) -> ModelError:
    frames = traceback.extract_tb(error.__traceback__)
    line = f" (line {frames[-1].lineno} of {os.path.basename(frames[-1].filename)})"
    reason = " ".join(str(error).split())
    return ModelError(f"{what} cannot be imported: {type(error).__name__}: {reason}{line}")
