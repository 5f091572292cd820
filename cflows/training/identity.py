"""What an object was set to, as text: by this a run tells whether a checkpoint is its own.

Numbers, words, tensors and containers count by value, functions by their code and by what they
refer to, modules and other objects by their class and their attributes, or what they would be
pickled by, however deep. What is trained counts by its shape alone.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import numbers
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import PurePath
from types import CodeType, FunctionType

import numpy as np
import torch
from torch import Tensor, nn

from cflows.core.registry import ARGUMENTS, CLASSES

__all__ = ["differences", "settings_of", "unmoved"]

NEW = object().__reduce_ex__(4)[0]  # what pickle calls for an object as most are
DEPTH = 32  # of objects within objects
LONG = 100  # characters, above which a text is told by its digest

PLAIN = (
    *(type(None), bool, str, bytes, Enum, PurePath, range, slice, complex),
    *(torch.dtype, torch.device, torch.layout),
)
INTERNAL = frozenset(vars(nn.Module()))
"""What every module has beside its settings, its mode among it."""

MACHINERY = frozenset(("asyncio", "concurrent", "logging", "multiprocessing", "queue", "threading"))
"""Modules whose objects are how a program runs, and no settings."""


def settings_of(name: str, thing: object, trained: Iterable[Tensor] = ()) -> dict[str, str]:
    """Each setting of an object by its path, such as ``"objective.alpha"``, as text.

    Of a module its parameters, submodules, and public attributes and buffers count: what else
    begins with an underscore is its own affair; of a registered class the arguments count in place
    of attributes. Buffers beside trained parameters are what training makes of them, and count by
    shape as these do, but for those of ``thing`` itself.

    Example:
        >>> from cflows import MMD
        >>> from cflows.training.identity import settings_of
        >>> settings_of("objective", MMD([1.0, 2.0]))["objective.widths"]
        'tuple(1, 2)'

    """
    settings: dict[str, str] = {}
    read_as: dict[int, tuple[str, object]] = {}  # with the object, so that its id stays its own
    by_shape = {id(tensor) for tensor in trained}

    def read(path: str, value: object, depth: int) -> None:
        if (text := _text(value, by_shape)) is not None:
            settings[path] = text
        elif id(value) in read_as:
            settings[path] = f"as {read_as[id(value)][0]}"
        else:
            read_as[id(value)] = path, value
            settings[path] = _called(value)
            parts = dict(_parts(value, by_shape, depth == 0)) if depth < DEPTH else {}
            for key, part in parts.items():
                read(f"{path}.{key}", part, depth + 1)

    read(name, thing, 0)
    return settings


def unmoved(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str | None]:
    """The settings of before, None in place of what has changed since: state, and no setting."""
    return {
        path: before[path] if before.get(path) == now.get(path) else None
        for path in {**before, **now}
    }


def differences(stored: Mapping[str, str | None], own: Mapping[str, str]) -> Iterator[str]:
    """In words, what stored settings and one's own differ in."""
    state = tuple(f"{path}." for path, text in stored.items() if text is None)
    for path in {**stored, **own}:
        was, now = stored.get(path, "missing"), own.get(path, "missing")
        if was is not None and was != now and not path.startswith(state):
            yield f"{path} was {was}, and is {now}"


def _text(value: object, trained: set[int]) -> str | None:
    """A value as text; None for an object with settings of its own."""
    if isinstance(value, PLAIN):
        return _shortened(repr(value))
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        real = float(value)
        return str(int(real)) if real.is_integer() else repr(real)
    if isinstance(value, Tensor):
        shape = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        return shape if id(value) in trained else f"{shape} {_digest(_bytes(value))}"
    if isinstance(value, np.ndarray):
        content = repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
        return f"{value.dtype} {list(value.shape)} {_digest(content)}"
    if isinstance(value, type) or inspect.ismodule(value) or inspect.isbuiltin(value):
        return value.__name__
    if isinstance(value, list | tuple | set | frozenset | Mapping):
        parts = [*value.items()] if isinstance(value, Mapping) else value
        texts = [_text(part, trained) for part in parts]
        if isinstance(value, set | frozenset):  # in which objects have no number to be read by
            texts = [
                text or str(settings_of("", part)) for text, part in zip(texts, parts, strict=True)
            ]
        if None in texts:
            return None
        shown = map(str, texts) if isinstance(value, list | tuple) else sorted(map(str, texts))
        return _shortened(f"{type(value).__name__}({', '.join(shown)})")
    return None


def _parts(value: object, trained: set[int], whole: bool) -> Iterator[tuple[str, object]]:
    """What an object is made of, by name."""
    if isinstance(value, nn.Module):
        parameters = dict(value.named_parameters(recurse=False))
        state = not whole and any(id(part) in trained for part in parameters.values())
        # What an object of a registered class keeps beside its arguments follows, or is state.
        registered = type(value) in CLASSES.values() and ARGUMENTS in vars(value)
        beside = (getattr(value, ARGUMENTS) if registered else vars(value)) | _of_class(value)
        for name, buffer in value.named_buffers(recurse=False):
            beside[name] = buffer.shape if state else buffer
        inner = parameters | dict(value.named_children())
        hidden = INTERNAL | inner.keys()
        yield from ((n, p) for n, p in beside.items() if n not in hidden and n[:1] != "_")
        yield from inner.items()
    elif isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(at), part) for at, part in enumerate(value))
    elif inspect.ismethod(value):
        yield "self", value.__self__
    elif inspect.isfunction(value):
        yield from _referred(value)
    elif isinstance(value, functools.partial):
        yield from (("of", value.func), ("args", value.args), ("keywords", value.keywords))
    elif type(value).__module__.split(".")[0] not in MACHINERY:
        yield from _of_class(value).items()
        yield from _pickled(value)


def _pickled(value: object) -> Iterator[tuple[str, object]]:
    """What pickle would keep of an object, its attributes as a rule; none of it is pickled."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # of whatever type, by the class's own code
        yield from getattr(value, "__dict__", {}).items()
        return
    if isinstance(reduced, str):
        yield "name", reduced
        return
    build, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    # A new object of its class, as most are, is told by the class's name already.
    if arguments := arguments[1:] if build is NEW else arguments:
        yield "built", arguments
    for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
        if isinstance(part, dict):
            yield from ((str(name), content) for name, content in part.items())
        elif part is not None:
            yield "state", part
    for content in (items, pairs):
        if content is not None:
            yield "items", list(content)


def _of_class(value: object) -> dict[str, object]:
    """The plain public attributes that an object has from its classes."""
    own = getattr(value, "__dict__", {})
    parts = {name: part for cls in type(value).__mro__[::-1] for name, part in vars(cls).items()}
    public = {name: part for name, part in parts.items() if name[:1] != "_" and name not in own}
    return {name: part for name, part in public.items() if _text(part, set()) is not None}


def _referred(function: FunctionType) -> Iterator[tuple[str, object]]:
    """What a function's result depends on beside its code: defaults, closure, global names."""
    yield "defaults", (function.__defaults__, function.__kwdefaults__)
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        held = None
        with suppress(ValueError):  # a cell that is still empty
            held = cell.cell_contents
        yield name, held
    for name in sorted(_names(code) & function.__globals__.keys()):
        value = function.__globals__[name]
        # Of what other modules define the name is enough.
        foreign = getattr(value, "__module__", None) != function.__module__
        yield name, value.__qualname__ if inspect.isfunction(value) and foreign else value


def _names(code: CodeType) -> set[str]:
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _code(code: CodeType) -> str:
    """Instructions and constants, without lines and files."""
    constants = [_code(c) if isinstance(c, CodeType) else _text(c, set()) for c in code.co_consts]
    return _digest(code.co_code + repr((code.co_names, constants)).encode())


def _called(value: object) -> str:
    if inspect.isfunction(value):
        return f"{value.__qualname__} {_code(value.__code__)}"
    if inspect.ismethod(value):
        return value.__qualname__
    return type(value).__qualname__


def _bytes(value: Tensor) -> bytes:
    if value.layout is not torch.strided or value.is_meta:
        return str(value).encode()
    numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return numbers.numpy().tobytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _shortened(text: str) -> str:
    return text if len(text) <= LONG else f"{text[:30]}... {_digest(text.encode())}"
