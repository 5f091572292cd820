"""A pickled pandas frame, read without pandas and without running anything that it names.

A pickle is a program: it calls what it names. Here a name is looked up in a short list of numpy's
constructors of arrays; every name below ``pandas.`` becomes an inert stand-in that only remembers
what it was called with; any other name is refused. The frame is then put together from its parts.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.harness.data.dataset import DataError, Matrix

__all__ = ["read_frame"]


def read_frame(path: Path) -> tuple[Matrix, tuple[str, ...]]:
    """Read the numbers (N, D) and the D column names of a ``DataFrame.to_pickle`` file.

    The layouts of pandas from 0.15 (of Python 2 as well) to 3 are known; columns must be numbers.
    The pickle of the GAS set in the archive of Papamakarios et al. 2017 was never at hand when this
    was written: it is tested on pickles made for it.

    Raises:
        DataError: the pickle names something else than arrays and pandas, is damaged, or holds no
            frame of numbers.

    """
    try:
        with path.open("rb") as file:
            frame = _Unpickler(file, encoding="latin1").load()
        return _numbers(frame)
    except (DataError, OSError):
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes stumble over
        raise DataError(
            f"{path}: no pickled frame of numbers that is known here "
            f"({type(error).__name__}: {error})"
        ) from None


class _Part:
    """Stands for whatever pandas has under a name; remembers arguments and state."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _reconstructor(cls: type[_Part], base: type, state: Any) -> _Part:
    """Take the place of ``copyreg._reconstructor``, of the oldest protocols."""
    return cls()


def _encode(text: str, encoding: str) -> bytes:
    """Take the place of ``_codecs.encode``, by which protocol 2 writes bytes."""
    if encoding != "latin1":
        raise DataError(f"a pickle of arrays has no use for the encoding {encoding!r}")
    return text.encode("latin1")


_reconstruct: Callable[..., Any] = np.zeros(0).__reduce__()[0]  # type: ignore[assignment]
_scalar: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
_frombuffer: Callable[..., Any] = np.zeros(1).__reduce_ex__(5)[0]  # type: ignore[assignment]

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("builtins", "slice"): slice,
    ("builtins", "object"): object,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("_codecs", "encode"): _encode,
    **{
        (f"numpy.{core}.{module}", name): value
        for core in ("core", "_core")
        for module, name, value in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = _PYTHON_2.get(module, module)
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module.split(".")[0] == "pandas":
            return type(name, (_Part,), {})
        raise DataError(
            f"the pickle asks for {module}.{name}, which no frame of numbers needs; it was not run"
        )


def _numbers(frame: _Part) -> tuple[Matrix, tuple[str, ...]]:
    manager = frame.state.get("_mgr", frame.state.get("_data"))
    if manager.state is None:  # from pandas 1.3
        blocks, axes = manager.args
        parts = [block.args[:2] for block in blocks]
    else:
        axes = manager.state[0]
        parts = [(b["values"], b["mgr_locs"]) for b in manager.state[3]["0.14.1"]["blocks"]]
    names = _labels(axes[0])
    columns: list[npt.NDArray[Any] | None] = [None] * len(names)
    for values, places in parts:
        for place, column in zip(np.arange(len(names))[places], values, strict=True):
            columns[place] = column
    rows = np.empty((len(columns[0]), len(names)))  # type: ignore[arg-type]
    for i, column in enumerate(columns):
        rows[:, i] = column
    return rows, names


def _labels(index: _Part) -> tuple[str, ...]:
    """The labels of an index: an array, which pandas 3 puts beside a dtype."""
    found: Any = index.args[1]["data"]
    if isinstance(found, _Part):
        found = next(part for part in found.state if isinstance(part, np.ndarray))
    return tuple(str(name) for name in found)
