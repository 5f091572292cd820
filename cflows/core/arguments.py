"""What users give: names that are chosen from, and numbers in tensors and arrays of any make.

What torch refuses in words of its own is converted where nothing is lost, and else refused in one
line that names the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["Array", "as_numbers", "as_tensor", "checked_image", "known", "listed", "nearest"]

Array: TypeAlias = np.ndarray[Any, Any]

REAL = "fiub"  # numpy's kinds: floating point, signed, unsigned, boolean
WIDEST = 8  # bytes of a float that torch has too


def known(name: str, value: str, choices: Collection[str]) -> str:
    """The value of the argument ``name``, which must be one of the choices.

    Raises:
        ValueError: it is none of them.

    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that names the known names most like one, with a blank behind; or nothing."""
    near = difflib.get_close_matches(name.lower(), list(known), n=3)
    return f"did you mean {' or '.join(near)}? " if near else ""


def listed(names: Sequence[str], most: int) -> str:
    """Names for a message, the first so many of them."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def as_tensor(name: str, values: Tensor | Array) -> Tensor:
    """A dense tensor of real numbers without a graph; memory is shared where torch can.

    Raises:
        TypeError: they are not real numbers, or sparse.
        ValueError: they carry a graph, which the second of two steps would look for in vain; or
            some are masked.

    """
    if not isinstance(values, Tensor):
        return torch.from_numpy(as_numbers(name, values))
    if values.layout is not torch.strided or values.is_nested or values.is_quantized:
        raise TypeError(f"{name} is no dense tensor: give x.to_dense()")
    if values.is_complex():
        raise TypeError(f"{name} is complex: give torch.view_as_real(x).flatten(1), or the parts")
    if values.requires_grad:
        raise ValueError(f"{name} carries a graph: detach() it, or put the network into the flow")
    # What was made within inference_mode can be part of no backward pass; its copy can.
    return values.clone() if values.is_inference() else values


def as_numbers(name: str, values: Array) -> Array:
    """An array that torch can take: of this machine's byte order, without negative strides.

    Raises:
        TypeError: it does not hold real numbers.
        ValueError: it has masked values, which torch would take for what lies under the mask.

    """
    if np.ma.is_masked(values):
        raise ValueError(
            f"{name} has masked values: drop such rows, as numpy.ma.compress_rows(x) does, or fill "
            "them in"
        )
    if values.dtype.names is not None:
        raise TypeError(
            f"{name} is a structured array with the fields {', '.join(values.dtype.names)}: give "
            "numpy.lib.recfunctions.structured_to_unstructured(x)"
        )
    kind, dtype = values.dtype.kind, values.dtype.newbyteorder("=")
    if kind == "O" or (kind in "fu" and dtype.itemsize > (WIDEST if kind == "f" else 1)):
        dtype = np.dtype(np.float64)
    elif kind not in REAL:
        raise TypeError(f"{name} holds {values.dtype}, not real numbers: give x.astype(float)")
    # torch cannot promise to leave memory alone that may not be written to, and warns.
    if values.dtype == dtype and values.flags.writeable and min(values.strides, default=0) >= 0:
        return values
    try:
        if kind == "O" and any(isinstance(value, str | bytes) for value in values.flat):
            raise TypeError("text is no number, though numpy reads it as one")
        return np.array(values, dtype, order="C")
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} holds objects that are not all real numbers: give the columns of numbers, "
            "text as numbers"
        ) from None


def checked_image(shape: Sequence[int]) -> tuple[int, int, int]:
    """C, H and W of an image, or a ValueError."""
    sizes = [int(size) for size in shape]
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"shape must be (C, H, W), each at least 1; got {tuple(shape)}")
    return sizes[0], sizes[1], sizes[2]
