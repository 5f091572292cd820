"""Loading flows; ``cflows.core.flow_file`` says what is in a file."""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from cflows.core.flow import Flow
from cflows.core.flow_file import FORMAT, read, rebuilt
from cflows.core.registry import LoadError

__all__ = ["load"]


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
