"""Saving and loading, without pickle.

A file is ``torch.save`` of three entries: ``format``, a number; ``configuration``, the constructor
calls that build the flow, as a JSON string; ``state``, its tensors. It is read with
``weights_only=True``. Reading a file runs constructors of registered classes and nothing else:
tags that begin with ``cflows.`` or ``baselines.`` resolve in these packages, others among the
classes that the user registered, and no module is imported because a file says so.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import io
import json
import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from cflows.core.atomic_write import write_whole

if TYPE_CHECKING:
    from cflows.core.flow import Flow

__all__ = ["LoadError", "again", "load", "register", "save"]

FORMAT = 1
OWN = ("cflows", "baselines")
ARGUMENTS = "_arguments"

T = TypeVar("T")
Class = TypeVar("Class", bound=type)

_registry: dict[str, type] = {}


class LoadError(ValueError):
    """A file that cannot be read as a saved flow; the message is one line with the remedy."""


def register(cls: Class) -> Class:
    """Make a class known to ``save`` and ``load``; usable as a decorator.

    From then on each instance remembers the arguments it was built with. Register the parts of your
    own that a saved flow holds: fields, bijectors, bases, subclasses of Flow. Dataclasses need no
    memory of their arguments, their fields are the arguments.

    Args:
        cls: the class. Its arguments must be numbers, strings, tensors, lists, dictionaries or
            instances of registered classes.

    Example:
        >>> import cflows
        >>> @cflows.register
        ... class Wave(cflows.Bijector):
        ...     pass

    """
    _registry[_tag(cls)] = cls
    if dataclasses.is_dataclass(cls):
        return cls
    original = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        # The outermost constructor comes first, and it is its call that rebuilds the object.
        if ARGUMENTS not in self.__dict__:
            bound = signature.bind(self, *args, **kwargs)
            self.__dict__[ARGUMENTS] = _flatten(bound)
        original(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


def save(flow: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a flow to one file, beside its place and then renamed: an earlier file is never lost.

    Args:
        flow: any module built of registered classes.
        path: the file.

    Raises:
        TypeError: a part is of a class that was not registered, or the flow is no longer what its
            constructors build; the message names it.
        OSError: the file cannot be written.

    """
    write_whole(path, packed(flow))


def packed(flow: nn.Module) -> memoryview:
    """The bytes of the file that ``save`` writes; raises TypeError as it does."""
    configuration = json.dumps(_encode(flow))
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


def configuration_of(module: nn.Module) -> str:
    """The calls that build a module, as JSON; its class's name where a part is unknown."""
    try:
        return json.dumps(_encode(module))
    except TypeError:
        return type(module).__qualname__


def again(module: T, **changes: Any) -> T:
    """Call a registered class again as for this instance, with some arguments changed: new weights.

    Raises:
        TypeError: the class was not registered, or takes no such argument.

    """
    if ARGUMENTS not in getattr(module, "__dict__", ()):
        raise TypeError(f"{type(module).__qualname__} is not a registered class")
    arguments = {**getattr(module, ARGUMENTS), **changes}
    return type(module)(*arguments.pop("*", []), **arguments)


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
        flow: Flow = _rebuilt(content["configuration"], dict(classes or {}), path)
        # assign: each tensor keeps the dtype it was saved in.
        flow.load_state_dict(state, assign=True)
        return flow.eval()
    except LoadError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        raise LoadError(f"{path} does not fit the classes of this version: {detail}") from None


def _rebuilt(configuration: str, classes: dict[str, type], path: object) -> Any:
    # Constructors draw initial weights: the caller's random numbers are left alone.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return _decode(json.loads(configuration), classes, path)


def _check_rebuilds(module: nn.Module, configuration: str) -> None:
    """Refuse what was changed after it was built: a file would not bring it back."""
    again = _rebuilt(configuration, dict(_registry), "the configuration")
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
    shared = len(list(module.parameters())) != len(list(again.parameters()))
    if shared:
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


def _tag(cls: type) -> str:
    package = cls.__module__.split(".")[0]
    return f"{package}.{cls.__name__}" if package in OWN else f"{cls.__module__}.{cls.__qualname__}"


def _flatten(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The call as keywords, with the positional rest under '*', and without self."""
    flat: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            flat["*"] = list(value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            flat.update(value)
        elif isinstance(value, list | dict):
            flat[name] = value.copy()
        else:
            flat[name] = value
    return flat


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _encode(item) for key, item in value.items()}}
    if isinstance(value, Tensor):
        # A shortest decimal of a float reads back as the same float.
        dtype = str(value.dtype).removeprefix("torch.")
        return {"tensor": value.detach().cpu().tolist(), "dtype": dtype}
    cls = type(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    recorded = dataclasses.is_dataclass(value) or ARGUMENTS in getattr(value, "__dict__", ())
    if _registry.get(_tag(cls)) is not cls or not recorded:
        raise TypeError(
            f"cannot save a {cls.__qualname__}: call cflows.register({cls.__qualname__}) "
            "before the flow is built"
        )
    if dataclasses.is_dataclass(value):
        arguments = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        arguments = getattr(value, ARGUMENTS)
    return {
        "class": _tag(cls),
        "arguments": {name: _encode(item) for name, item in arguments.items()},
    }


def _decode(value: Any, classes: dict[str, type], path: object) -> Any:
    if isinstance(value, list):
        return [_decode(item, classes, path) for item in value]
    if not isinstance(value, dict):
        return value
    if "mapping" in value:
        return {key: _decode(item, classes, path) for key, item in value["mapping"].items()}
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    arguments = {name: _decode(item, classes, path) for name, item in value["arguments"].items()}
    positional = arguments.pop("*", [])
    return _resolve(value["class"], classes, path)(*positional, **arguments)


def _resolve(tag: str, classes: dict[str, type], path: object) -> type:
    package = tag.split(".")[0]
    if package in OWN:
        importlib.import_module(package)
    cls = classes.get(tag) or _registry.get(tag)
    if cls is None:
        name = tag.rsplit(".", 1)[-1]
        raise LoadError(
            f"{path} needs the class {tag}: import and cflows.register({name}) first, "
            f'or load(path, classes={{"{tag}": {name}}})'
        )
    return cls
