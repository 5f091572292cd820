"""Flows from their files, which are no pickle.

A file is ``torch.save`` of three entries: ``format``, a number; ``configuration``, the constructor
calls that build the flow, as a JSON string; ``state``, its tensors. It is read with
``weights_only=True``. Reading a file runs constructors of registered classes and nothing else: a
tag names a class that is registered, or that a package registers whose entry point in the group
``cflows.classes`` says so; no module is imported because a file says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cflows.core.flow import Flow
from cflows.core.registry import FORMAT, LoadError, rebuilt

__all__ = ["load", "read"]


def load(path: str | os.PathLike[str], classes: Mapping[str, type] | None = None) -> Flow:
    """Read a flow that ``flow.save`` wrote: the same bits, in evaluation mode, on the CPU.

    Args:
        path: the file.
        classes: classes of your own by their tag, for those that were not registered.

    Raises:
        FileNotFoundError: there is no such file.
        LoadError: the file is damaged, foreign, of a later format, or names an unknown class.

    Example:
        >>> import tempfile, torch
        >>> from cflows import FFJORD, load
        >>> flow = FFJORD(2).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     flow.save(f"{folder}/mine.flow")
        ...     again = load(f"{folder}/mine.flow")
        >>> x = torch.zeros(1, 2)
        >>> bool(again.log_prob(x) == flow.log_prob(x))
        True

    """
    content = read(path)
    if content.keys() != {"format", "configuration", "state"}:
        raise LoadError(f"{path} holds no flow: it was not written by flow.save")
    if content["format"] != FORMAT:
        raise LoadError(
            f"{path} is of format {content['format']}, this version reads {FORMAT}: update cflows"
        )
    state: dict[str, Tensor] = content["state"]
    try:
        flow = rebuilt(content["configuration"], classes or {}, path)
        if not isinstance(flow, Flow):
            raise LoadError(f"{path} holds a {type(flow).__name__}, not a flow")
        # assign: each tensor keeps the dtype it was saved in.
        flow.load_state_dict(state, assign=True)
        return flow.eval()
    except LoadError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        raise LoadError(f"{path} does not fit the classes of this version: {detail}") from None


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a dictionary of tensors and plain values, or raise one clear line."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged file
        raise LoadError(
            f"{path} is damaged or was not written by this package "
            f"({type(error).__name__}); use an earlier copy"
        ) from None
    if not isinstance(content, dict):
        raise LoadError(f"{path} was not written by this package")
    return content
