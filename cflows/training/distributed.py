"""Several processes that train one flow, each on its share of every batch.

All that asks for a process group of torch.distributed is here; one process is a team too, for which
nothing is sent. ``fit`` wraps objective and flow in DistributedDataParallel. Since each process has
as many rows, the mean of their gradients is that of the whole batch.

Every process must come to the same collectives in the same order, or all wait for ever. So what
only one of them can know (a failed solve, a signal, the time) is told to all before it is acted on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy

from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from cflows.continuous.solvers import SolverError
from cflows.core.collectives import ProcessError, device_of_group, gathered, largest, processes
from cflows.core.flow import Flow

__all__ = ["batch_size_for", "check_alike", "shared_loss", "together"]


def batch_size_for(size: int, most: int) -> int:
    """The batch size of all processes together, at most what ``most`` rows allow.

    Raises:
        ProcessError: the processes cannot have as many rows each.

    """
    count = processes()
    if size % count:
        raise ProcessError(
            f"batch_size {size} cannot be shared out evenly by {count} processes: give "
            f"{size - size % count or count}"
        )
    if most >= size:
        return size
    if most < count:
        raise ProcessError(f"{most} training rows are too few for {count} processes: start fewer")
    return most - most % count


@contextmanager
def together(active: bool = True) -> Iterator[None]:
    """Raise in all processes, at the end of a block, what one of them raised within it.

    The block must hold no collectives: the processes that did not fail would wait in them. If it is
    not active, an error stays where it is raised.

    Raises:
        SolverError: solves failed, and nothing else did.
        ProcessError: another process raised another error; its text is quoted.

    """
    if processes() == 1 or not active:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    if largest(own is not None) == [0.0]:
        return
    told = gathered(None if own is None else (isinstance(own, SolverError), str(own)))
    failed = [(number, *failure) for number, failure in enumerate(told) if failure is not None]
    number, solver, text = min(failed, key=lambda failure: failure[1])  # the first that is fatal
    if own is not None and (solver or not isinstance(own, SolverError)):
        raise own
    if not solver:
        raise ProcessError(f"process {number} failed: {text}") from own
    raise SolverError(f"in process {number}: {text}")


def check_alike(settings: Callable[[], object]) -> None:
    """Refuse processes that were asked for different runs.

    Raises:
        ProcessError: the settings, anything that can be compared, are not the same in all.

    """
    if processes() == 1:
        return
    first, *others = gathered(settings())
    if any(other != first for other in others):
        raise ProcessError(
            "the processes were given different rows, models or settings: give each of them the "
            "same, all rows too; fit shares the rows out"
        )


def shared_loss(objective: nn.Module, flow: Flow, normed: bool) -> Callable[..., Tensor]:
    """``(x, context, weights) -> loss`` whose backward pass leaves the whole batch's gradient.

    Several processes start from the first one's parameters and buffers, and share the objective's
    draws out too. A flow is normed if a part of it takes its batch's ``moments``.

    Raises:
        ProcessError: the loss or a part of the flow is not a mean over rows.

    """
    joint = _Joint(objective, flow)
    if processes() == 1:
        return joint.forward
    joint.objective = _share_of_draws(objective)
    _refuse(objective, flow)
    if normed and flow.is_continuous:
        raise ProcessError(
            "batch norm beside a continuous block would wait for a process whose solve has failed: "
            "build with batch_norm=False, or train it in one process"
        )
    _take_over(objective)
    _take_over(flow)
    trained = next(p for p in joint.parameters() if p.requires_grad)
    # Parameters that a batch does not use would be waited for, unless they are looked for at each
    # step. Where there are none a warning says that this was in vain: so there is always one.
    joint.unused = nn.Parameter(trained.detach().new_zeros(()))
    return DistributedDataParallel(joint, find_unused_parameters=True)


class _Joint(nn.Module):
    """Objective and flow as one module, so that a wrapper sees the parameters of both."""

    def __init__(self, objective: nn.Module, flow: nn.Module) -> None:
        super().__init__()
        self.objective, self.flow = objective, flow

    def forward(self, x: Tensor, context: Tensor | None, weights: Tensor | None = None) -> Tensor:
        weighing = {} if weights is None else {"weights": weights}
        loss: Tensor = self.objective(self.flow, (x, context), **weighing)
        return loss


def _share_of_draws(objective: nn.Module) -> nn.Module:
    """The same objective, parameters and all, with this process's part of the draws."""
    draws, count = getattr(objective, "rows", None), processes()
    if draws is None:
        return objective
    if draws % count:
        raise ProcessError(
            f"{draws} draws cannot be shared out evenly by {count} processes: give "
            f"{draws - draws % count or count}"
        )
    part = copy(objective)
    part.rows = draws // count
    return part


def _refuse(objective: nn.Module, flow: nn.Module) -> None:
    if not getattr(objective, "additive", False):
        raise ProcessError(
            f"the loss of {type(objective).__name__} is not known to be a mean over rows, which "
            "several processes could share: train it in one, or set its attribute additive = True"
        )
    learnt = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for name, part in [*objective.named_modules(), *flow.named_modules()]:
        if isinstance(part, learnt):
            raise ProcessError(
                f"{name} would learn the statistics of each process's rows alone: train it in one "
                "process, or convert it by torch.nn.SyncBatchNorm"
            )
        if getattr(part, "gradient", None) == "adjoint":
            raise ProcessError(
                'gradient="adjoint" may fail in one process on the way back, while the others '
                'wait: give gradient="checkpoint", or train it in one process'
            )


def _take_over(module: nn.Module) -> None:
    """The state of the first process, in all."""
    state = module.state_dict()
    device = next((v.device for v in (*module.parameters(), *module.buffers())), device_of_group())
    for name, value in state.items():
        # Steps of a grid are kept on the CPU, where a group of NCCL alone does not reach.
        state[name] = value.detach().to(device).clone()
        dist.broadcast(state[name], 0)
    module.load_state_dict(state)
