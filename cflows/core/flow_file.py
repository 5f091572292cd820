"""The bytes of a flow's file: no pickle.

A file is ``torch.save`` of three entries: ``format``, a number; ``configuration``, the constructor
calls that build the flow, as a JSON string; ``state``, its tensors. It is read with
``weights_only=True``. Reading a file runs constructors of registered classes and nothing else: a
tag names a class that is registered, or that a package registers whose entry point in the group
``cflows.classes`` says so; no module is imported because a file says so.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cflows.core.registry import CLASSES, LoadError, decode, encode

__all__ = ["FORMAT", "packed", "read", "rebuilt", "to_bytes"]

FORMAT = 1


def packed(flow: nn.Module) -> memoryview:
    """The bytes of the file that ``save`` writes; raises TypeError as it does."""
    configuration = json.dumps(encode(flow))
    _check_rebuilds(flow, configuration)
    content = {
        "format": FORMAT,
        "configuration": configuration,
        "state": {name: value.detach() for name, value in flow.state_dict().items()},
    }
    return to_bytes(content)


def to_bytes(content: object) -> memoryview:
    """What ``torch.save`` writes, in memory first.

    torch reports a full disk by half a dozen exceptions, the system by one.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def rebuilt(configuration: str, classes: Mapping[str, type], path: object) -> object:
    """What a configuration builds, on the CPU; raises as ``decode`` does."""
    # Constructors draw initial weights: the caller's random numbers are left alone.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return decode(json.loads(configuration), classes, path)


def _check_rebuilds(module: nn.Module, configuration: str) -> None:
    """Refuse what was changed after it was built: a file would not bring it back."""
    again = rebuilt(configuration, CLASSES, "the configuration")
    assert isinstance(again, nn.Module)
    for kind in ("named_parameters", "named_buffers"):
        here, there = (
            {name: tuple(value.shape) for name, value in getattr(m, kind)(remove_duplicate=False)}
            for m in (module, again)
        )
        if changed := sorted(set(here.items()) ^ set(there.items())):
            raise TypeError(
                f"cannot save: {changed[0][0]} is not as the constructors build it; build the flow "
                "anew with the change as an argument, or register a class that makes it"
            )
    if len(list(module.parameters())) != len(list(again.parameters())):
        raise TypeError("cannot save: a part is used twice, and would be loaded as two")


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
