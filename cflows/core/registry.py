"""Classes by name: how a flow is told as the calls that build it, and is built from them again.

A class has a tag, ``module.Name`` as a rule. A package that installs an entry point of its name in
the group ``cflows.classes`` may call ``short_tags``: its tags are ``package.Name``, whatever module
a class moves to, its subclasses of this package's bases are registered as they are defined, and
``load`` imports it where a file names it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import json
import numbers
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

__all__ = [
    "CLASSES",
    "FORMAT",
    "LoadError",
    "again",
    "configuration_of",
    "decode",
    "encode",
    "moved",
    "packed",
    "rebuilt",
    "register",
    "short_tags",
    "to_bytes",
]

FORMAT = 1  # of files
GROUP = "cflows.classes"
ARGUMENTS = "_arguments"

T = TypeVar("T")
Class = TypeVar("Class", bound=type)
Encoded: TypeAlias = "dict[str, Encoded] | list[Encoded] | str | float | int | bool | None"

CLASSES: dict[str, type] = {}
"""The registered classes by their tags."""

_SHORT = {"cflows"}


class LoadError(ValueError):
    """A file that cannot be read as a saved flow; the message is one line with the remedy."""


def short_tags(package: str) -> None:
    """Let a package have tags ``package.Name``; called before its classes are defined."""
    _SHORT.add(package)


def moved(package: str, *classes: type) -> None:
    """Let files name classes by the package that they stood in before."""
    CLASSES.update({f"{package}.{cls.__name__}": cls for cls in classes})


def is_own(cls: type) -> bool:
    """Whether a class is of a package with short tags."""
    return cls.__module__.split(".")[0] in _SHORT


def register(cls: Class) -> Class:
    """Make a class known to ``save`` and ``load``; usable as a decorator.

    From then on each instance remembers the arguments it was built with. Register the parts of your
    own that a saved flow holds: fields, bijectors, bases, subclasses of Flow. Dataclasses need no
    memory of their arguments, their fields are the arguments.

    Args:
        cls: the class. Its arguments must be numbers, strings, tensors, lists, dictionaries or
            instances of registered classes.

    Raises:
        ValueError: another class has this tag already. A class that is defined anew at its place,
            as in a cell of a notebook, takes the earlier one's.

    Example:
        >>> import cflows
        >>> @cflows.register
        ... class Wave(cflows.Bijector):
        ...     pass

    """
    tag = _tag(cls)
    known = CLASSES.get(tag, cls)
    if known is not cls and (_place(known) != _place(cls) or "<locals>" in cls.__qualname__):
        raise ValueError(
            f"the tag {tag} is {_place(known)}'s: give the class of {cls.__module__} another name"
        )
    CLASSES[tag] = cls
    if dataclasses.is_dataclass(cls):
        return cls
    original = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: object, *args: object, **kwargs: object) -> None:
        # The outermost constructor comes first, and it is its call that rebuilds the object.
        if ARGUMENTS not in self.__dict__:
            bound = signature.bind(self, *args, **kwargs)
            self.__dict__[ARGUMENTS] = _flatten(bound)
        original(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


def configuration_of(module: nn.Module) -> str:
    """The calls that build a module, as JSON; its class's name where a part is unknown."""
    try:
        return json.dumps(encode(module))
    except TypeError:
        return type(module).__qualname__


def again(module: T, **changes: object) -> T:
    """Call a registered class again as for this instance, with some arguments changed: new weights.

    Raises:
        TypeError: the class was not registered, or takes no such argument.

    """
    if ARGUMENTS not in getattr(module, "__dict__", ()):
        raise TypeError(f"{type(module).__qualname__} is not a registered class")
    arguments = {**getattr(module, ARGUMENTS), **changes}
    return type(module)(*arguments.pop("*", []), **arguments)


def shown(module: nn.Module) -> Iterator[str]:
    """The arguments that an instance of a registered class was built with, its parts left out."""
    for name, value in getattr(module, ARGUMENTS, {}).items():
        if value is None:
            continue
        items = value if isinstance(value, list | tuple) else [value]
        if isinstance(value, Tensor):
            yield f"{name}=tensor{tuple(value.shape)}"
        elif len(items) > 8:
            yield f"{name}=[{len(items)} values]"
        elif not any(isinstance(item, nn.Module) for item in items):
            yield f"{name}={value!r}"


def _tag(cls: type) -> str:
    return f"{cls.__module__.split('.')[0]}.{cls.__name__}" if is_own(cls) else _place(cls)


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _flatten(bound: inspect.BoundArguments) -> dict[str, object]:
    """The call as keywords, with the positional rest under '*', and without self."""
    flat: dict[str, object] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            flat["*"] = list(value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            flat.update(value)
        else:
            flat[name] = value.copy() if isinstance(value, list | dict) else value
    return flat


def encode(value: object) -> Encoded:
    """A module, a dataclass or a plain value as JSON has it.

    Raises:
        TypeError: a part is of a class that was not registered.

    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {"mapping": {str(key): encode(item) for key, item in value.items()}}
    if isinstance(value, Tensor):
        # A shortest decimal of a float reads back as the same float.
        dtype = str(value.dtype).removeprefix("torch.")
        return {"tensor": value.detach().cpu().tolist(), "dtype": dtype}
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    cls = type(value)
    arguments = getattr(value, ARGUMENTS, None)
    if dataclasses.is_dataclass(cls):
        arguments = {field.name: getattr(value, field.name) for field in dataclasses.fields(cls)}
    if CLASSES.get(_tag(cls)) is not cls or arguments is None:
        raise TypeError(
            f"cannot save a {cls.__qualname__}: call cflows.register({cls.__qualname__}) "
            "before the flow is built"
        )
    encoded = {name: encode(item) for name, item in arguments.items()}
    return {"class": _tag(cls), "arguments": encoded}


def decode(value: Any, classes: Mapping[str, type], path: object) -> Any:
    """What ``encode`` was given; new weights.

    Raises:
        LoadError: a class is not known; ``path`` is what names it.

    """
    if isinstance(value, list):
        return [decode(item, classes, path) for item in value]
    if not isinstance(value, dict):
        return value
    if "mapping" in value:
        return {key: decode(item, classes, path) for key, item in value["mapping"].items()}
    if "tensor" in value:
        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    arguments = {name: decode(item, classes, path) for name, item in value["arguments"].items()}
    positional = arguments.pop("*", [])
    cls = _resolve(value["class"], classes, path)
    return cls(*positional, **{**vars(cls).get("ABSENT", {}), **arguments})


def rebuilt(configuration: str, classes: Mapping[str, type], path: object) -> object:
    """What a configuration builds, on the CPU; raises as ``decode`` does."""
    # Constructors draw initial weights: the caller's random numbers are left alone.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return decode(json.loads(configuration), classes, path)


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


def _resolve(tag: str, classes: Mapping[str, type], path: object) -> type:
    cls = classes.get(tag) or CLASSES.get(tag)
    if cls is None:
        for entry in entry_points(group=GROUP, name=tag.split(".")[0]):
            entry.load()
        cls = CLASSES.get(tag)
    if cls is None:
        name = tag.rsplit(".", 1)[-1]
        raise LoadError(
            f"{path} needs the class {tag}: import and cflows.register({name}) first, "
            f'or load(path, classes={{"{tag}": {name}}})'
        )
    return cls


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
