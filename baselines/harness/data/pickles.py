"""Pickles of arrays and of pandas frames, read without running anything that they name.

A pickle is a program: it calls what it names. Here every name that an array or a frame needs
becomes an inert stand-in that only remembers what it was called with, and any other name is
refused. Arrays and frames are then put together from these parts.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from baselines.harness.data.dataset import DataError, Matrix
from cflows.core.arguments import Array

__all__ = ["Pickled", "array_of", "read_frame", "unpickle"]

Pickled: TypeAlias = Any  # whatever a pickle holds


class _Part:
    """Stands for what has a name; remembers arguments and state."""

    state: Pickled = None

    def __init__(self, *args: Pickled) -> None:
        self.args = args

    def __setstate__(self, state: Pickled) -> None:
        self.state = state


class _Array(_Part):
    """Stands for an array."""


def _reconstructor(cls: type[_Part], base: type, state: Pickled) -> _Part:
    """Take the place of ``copyreg._reconstructor``, of the oldest protocols."""
    return cls()


def _encode(text: str, encoding: str) -> bytes:
    """Take the place of ``_codecs.encode``, by which protocol 2 writes bytes."""
    if encoding != "latin1":
        raise DataError(f"a pickle of arrays has no use for the encoding {encoding!r}")
    return text.encode("latin1")


_KNOWN: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Part,
    ("builtins", "slice"): slice,
    ("builtins", "object"): object,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("_codecs", "encode"): _encode,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _Part),
            ("numeric", "_frombuffer", _Array),
        )
    },
}
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class _Unpickler(pickle.Unpickler):
    wanted = ""

    def find_class(self, module: str, name: str) -> object:
        module = _PYTHON_2.get(module, module)
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if self.wanted == "frames" and module.split(".")[0] == "pandas":
            return type(name, (_Part,), {})
        raise DataError(
            f"asks for {module}.{name}, which {self.wanted} do not need; it was not run"
        )


def unpickle(file: IO[bytes], wanted: str) -> Pickled:
    """What a pickle of ``"images"`` or ``"frames"`` holds, in stand-ins; strings as text.

    DataError where it asks for something else. Damage raises whatever its opcodes stumble over.
    """
    unpickler = _Unpickler(file, encoding="latin1")
    unpickler.wanted = wanted
    return unpickler.load()


def array_of(part: Pickled) -> Array:
    """The array that a stand-in tells of; raises ValueError where it tells of none."""
    if not isinstance(part, _Array):
        raise ValueError(f"a {type(part).__name__} in place of an array")
    if part.state is None:  # of protocol 5
        content, dtype, shape, order = part.args
    else:
        _, shape, dtype, fortran, content = part.state
        order = "F" if fortran else "C"
    if isinstance(content, list):
        return np.array(content, object).reshape(shape)
    if isinstance(content, str):
        content = content.encode("latin1")
    byte_order = dtype.state[1] if dtype.state else "="
    return np.frombuffer(content, f"{byte_order}{dtype.args[0]}").reshape(shape, order=order)


def read_frame(path: Path) -> tuple[Matrix, tuple[str, ...]]:
    """Read the numbers (N, D) and the D column names of a ``DataFrame.to_pickle`` file.

    The layouts of pandas from 0.15 (of Python 2 as well) to 3 are known. DataError where the pickle
    names something else than arrays and pandas, is damaged, or holds no frame of numbers.
    """
    try:
        with path.open("rb") as file:
            return _numbers(unpickle(file, "frames"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its opcodes stumble over
        raise DataError(
            f"{path}: no pickled frame of numbers that is known here "
            f"({type(error).__name__}: {error})"
        ) from None


def _numbers(frame: _Part) -> tuple[Matrix, tuple[str, ...]]:
    manager = frame.state.get("_mgr", frame.state.get("_data"))
    if manager.state is None:  # from pandas 1.3
        blocks, axes = manager.args
        parts = [block.args[:2] for block in blocks]
    else:
        axes = manager.state[0]
        parts = [(b["values"], b["mgr_locs"]) for b in manager.state[3]["0.14.1"]["blocks"]]
    labels = axes[0].args[1]["data"]
    if not isinstance(labels, _Array):  # pandas 3 puts a dtype beside it
        labels = next(part for part in labels.state if isinstance(part, _Array))
    names = tuple(map(str, array_of(labels)))
    columns: dict[int, Array] = {}
    for values, indices in parts:
        at = np.arange(len(names))[indices] if isinstance(indices, slice) else array_of(indices)
        columns |= zip(at.tolist(), array_of(values), strict=True)
    return np.column_stack([columns[i] for i in range(len(names))]).astype(np.float64), names
