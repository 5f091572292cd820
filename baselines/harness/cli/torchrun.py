"""The ``cflows`` command in several processes that torchrun has started.

All of them run the same command; the first one writes and prints. Which of them says why it all
failed is decided by torchrun's store: the one that asks first.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["count", "joined", "speaks"]

FAILED = "cflows/failed"


def count() -> int:
    """How many processes torchrun has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Within a block, the processes are one process group: NCCL between GPUs, Gloo between CPUs.

    Args:
        device: ``"cpu"``, or ``"cuda"`` for the GPU of the number LOCAL_RANK.

    Raises:
        ProcessError: there are fewer GPUs than processes on this machine.
        SystemExit: the block failed here because it had failed in another process.

    """
    if count() == 1:
        yield
        return
    import torch
    from torch import distributed as dist

    from cflows import ProcessError

    if device == "cuda":
        rank, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if rank >= gpus:
            raise ProcessError(
                f"process {rank} of this machine has no GPU, there are {gpus}: give torchrun "
                f"--nproc_per_node {gpus}, or --device cpu"
            )
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=_store(),
        rank=int(os.environ["RANK"]),
        world_size=count(),
    )
    try:
        with ExitStack() as silent:
            if dist.get_rank():
                warnings.simplefilter("ignore")
                nowhere = silent.enter_context(open(os.devnull, "w"))
                silent.enter_context(redirect_stdout(nowhere))
                silent.enter_context(redirect_stderr(nowhere))
            yield
    except Exception:
        if _store().check([FAILED]):
            raise SystemExit(1) from None
        raise
    # Not after an error: the others may still wait for this process, which its end tells them.
    dist.destroy_process_group()


def speaks() -> bool:
    """Whether it is for this process to say that the command has failed; true in one of them."""
    if count() == 1:
        return True
    try:
        return bool(_store().add(FAILED, 1) == 1)
    except RuntimeError:
        return False  # the store is gone, and with it the process that has said so


@cache
def _store() -> Store:
    from torch.distributed.rendezvous import rendezvous

    store: Store = next(rendezvous("env://"))[0]
    return store
