r"""FFJORD of images: convolutional fields at several scales.

Grathwohl et al. 2019, section 4 and appendix B.1, after Dinh, Sohl-Dickstein and Bengio 2017: from
data to noise an image passes some continuous blocks, is squeezed, (C, H, W) -> (4C, H/2, W/2),
passes some more, and half of its channels are noise for good; the other half goes on in the same
way, and the last scale has blocks alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from cflows.bijectors.multiscale import MultiScale, Squeeze
from cflows.continuous.conv_fields import ConvField, UNetField
from cflows.continuous.ode_bijector import ODEBijector
from cflows.continuous.solvers import Adaptive, Lagged, Solver
from cflows.core.arguments import checked_image, known
from cflows.core.bijector import Bijector, Chain
from cflows.core.flow import Flow

__all__ = ["ImageFFJORD"]

FIELDS = {"conv": ConvField, "unet": UNetField}
FEW = 100  # numbers of an image up to which the trace in evaluation is exact


class ImageFFJORD(Flow):
    r"""A continuous flow of images, rows of shape (C, H, W) that are flat in this order.

    ``scales=1`` is one block at the image's own size, which flow matching can train; more scales
    are trained by likelihood.

    In evaluation the trace of an image of more than 100 numbers is estimated by
    ``evaluation_probes`` fixed probes: log p is then unbiased, exp(log p) is not. With
    ``flow.using(divergence="exact")`` it is exact, by as many products as there are numbers.

    Args:
        shape: (C, H, W); H and W are multiples of 2^(scales - 1).
        scales: how many.
        blocks: continuous blocks before and behind each squeeze, and at the last scale.
        field: ``"conv"``, see ``ConvField``, or ``"unet"``, see ``UNetField``.
        context_features: numbers of a context, such as the indicators of a class.
        divergence: the trace in training, see ``ODEBijector``.
        training_solver: ``Lagged``, ``FixedGrid`` or ``Adaptive``.
        evaluation_solver: likewise.
        evaluation_divergence: by default exact for an image of up to 100 numbers, else an estimate.
        evaluation_probes: how many probes that takes.
        base: the distribution of z; by default the standard normal.
        settings: further arguments of the field.
        ode: further arguments of ``ODEBijector``.

    Raises:
        ValueError: sizes that do not fit, or an unknown name.

    Example:
        >>> import torch
        >>> from cflows import ImageFFJORD
        >>> flow = ImageFFJORD((1, 4, 4), scales=2, settings={"hidden": (8,)}).eval()
        >>> flow.log_prob(torch.zeros(3, 16)).shape
        torch.Size([3])

    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        scales: int = 1,
        blocks: int = 1,
        field: str = "conv",
        context_features: int = 0,
        divergence: str = "hutchinson",
        training_solver: Solver = Lagged("rk4", 1e-2),  # noqa: B008, immutable
        evaluation_solver: Solver = Adaptive("dopri5", 1e-5, 1e-5),  # noqa: B008, immutable
        evaluation_divergence: str | None = None,
        evaluation_probes: int = 8,
        base: nn.Module | None = None,
        settings: Mapping[str, Any] | None = None,
        ode: Mapping[str, Any] | None = None,
    ) -> None:
        size = checked_image(shape)
        known("field", field, FIELDS)
        if scales < 1 or blocks < 1:
            raise ValueError(f"scales and blocks must be at least 1, got {scales} and {blocks}")
        features = size[0] * size[1] * size[2]
        if evaluation_divergence is None:
            evaluation_divergence = "exact" if features <= FEW else "hutchinson"

        def solved(size: tuple[int, int, int]) -> list[Bijector]:
            return [
                ODEBijector(
                    FIELDS[field](size, context_features=context_features, **(settings or {})),
                    divergence=divergence,
                    training_solver=training_solver,
                    evaluation_solver=evaluation_solver,
                    evaluation_divergence=evaluation_divergence,
                    evaluation_probes=evaluation_probes,
                    **(ode or {}),
                )
                for _ in range(blocks)
            ]

        levels: list[Bijector] = []
        for _ in range(scales - 1):
            squeeze = Squeeze(size)
            levels.append(Chain(*solved(squeeze.squeezed), squeeze, *solved(size)))
            size = 2 * size[0], size[1] // 2, size[2] // 2
        levels.append(Chain(*solved(size)))
        super().__init__(MultiScale(*reversed(levels)) if scales > 1 else levels[0], base)
