"""Normalization layers as bijectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cflows.core.bijector import Bijector, Mapped, may_read
from cflows.core.collectives import moments

__all__ = ["ActNorm", "BatchNorm"]


class ActNorm(Bijector):
    """A learned affine map that starts by normalising its first batch of data.

        x = b + exp(s) z,   log|det dx/dz| = H W Σ_c s_c   (H W = 1 without a shape)

    (Kingma and Dhariwal 2018, section 3.1). The first ``inverse`` in training mode sets b and s to
    the mean and the log standard deviation of its batch, per coordinate or per channel, so that it
    returns zero mean and unit variance; from then on both are trained like any parameter. Until
    then, and so in evaluation and in ``forward`` too, the map is the identity.

    A batch of fewer than two values a channel, or with one that is not finite, tells no spread and
    initialises nothing. A column
    that is constant in the first batch is shifted and keeps s = 0. Log scales have no bound: they
    are the data's. That it was initialised is part of the state, and so of saved flows. In several
    processes ``fit`` has each start from the whole first batch; a loop of one's own should run one
    batch through before it wraps the flow in DistributedDataParallel.

    Args:
        features: D.
        shape: (C, H, W) with C H W = D for images: one b and s a channel.

    Raises:
        ValueError: the shape does not have D elements.

    Example:
        >>> import torch
        >>> from cflows import ActNorm
        >>> layer = ActNorm(1)
        >>> layer.inverse(torch.tensor([[1.0], [3.0]])).flatten().tolist()
        [-1.0, 1.0]
        >>> layer.forward(torch.tensor([0.0])).tolist()
        [2.0]

    """

    initialised: Tensor

    def __init__(self, features: int, *, shape: tuple[int, int, int] | None = None) -> None:
        super().__init__(features)
        channels, height, width = shape or (features, 1, 1)
        if channels * height * width != features or min(channels, height, width) < 1:
            raise ValueError(f"shape {tuple(shape or ())} must have {features} elements, as D")
        self.pixels = height * width
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialised", torch.tensor(False))
        # What is known here of the buffer, so that the device is asked once, not at every batch.
        self._known_initialised = False

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """b + exp(s) z."""
        x = torch.addcmul(self._spread(self.shift), self._spread(self.log_scale).exp(), z)
        return x, self._log_det(z)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """(x - b) exp(-s)."""
        if self.training and not self._known_initialised:
            self._initialise(x)
        z = (x - self._spread(self.shift)) * torch.exp(-self._spread(self.log_scale))
        return z, -self._log_det(x)

    def _spread(self, of_channels: Tensor) -> Tensor:
        """(C,) -> (D,)."""
        return of_channels.unsqueeze(-1).expand(-1, self.pixels).reshape(-1)

    def _log_det(self, value: Tensor) -> Tensor:
        return (self.pixels * self.log_scale.sum()).expand(value.shape[:-1])

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        if not may_read(x):
            raise RuntimeError(
                "an ActNorm starts from its first batch in training mode: run one through before "
                "torch.func, compilation or export, or call eval()"
            )
        if not bool(self.initialised):
            channels = len(self.shift)
            values = x.reshape(-1, channels, self.pixels).movedim(1, 0).reshape(channels, -1)
            if values.shape[1] < 2:
                return
            std, mean = torch.std_mean(values, dim=1, correction=0)
            # The device is asked here anyway. One bad row would leave NaN for good.
            if not bool(std.isfinite().all()):
                return
            # torch's recurrence (Welford) gives a constant column a spread of exactly zero.
            varies = std >= torch.finfo(std.dtype).tiny
            self.shift.copy_(mean)
            self.log_scale.copy_(torch.where(varies, std, 1.0).log())
            self.initialised.fill_(True)
        self._known_initialised = True

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self._known_initialised = False
        super()._load_from_state_dict(*args, **kwargs)


class BatchNorm(Bijector):
    r"""Batch normalization as a bijector: data -> noise normalises, noise -> data undoes it.

        z = exp(γ) (x - m) / √(v + ε) + β,   log|det dz/dx| = Σ_i γ_i - log(v_i + ε) / 2

    (Dinh et al. 2017, section 3.7; Papamakarios et al. 2017, appendix B). While training,
    ``inverse`` takes m and v from the batch, or with ``moving`` from the running averages that the
    batch was just mixed into, as the FFJORD code does; in evaluation from the running averages.
    ``forward`` always uses those, and is well defined before any ``inverse``. Where several
    processes share a batch in ``fit``, m and v are the whole batch's, with gradient.

    Args:
        features: D.
        moving: whether training normalises by the running averages.
        momentum: how much of the running averages is kept at each batch.
        eps: ε.

    Example:
        >>> import torch
        >>> from cflows import BatchNorm
        >>> layer = BatchNorm(1)
        >>> layer.inverse(torch.tensor([[1.0], [3.0]])).round(decimals=3).flatten().tolist()
        [-1.0, 1.0]
        >>> layer.forward(torch.zeros(1, 1)).item()  # back, by the running averages
        2.0

    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(
        self, features: int, *, moving: bool = False, momentum: float = 0.9, eps: float = 1e-4
    ) -> None:
        super().__init__(features)
        self.moving, self.momentum, self.eps = moving, momentum, eps
        self.log_gamma = nn.Parameter(torch.zeros(features))
        self.beta = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """x = (z - β) exp(-γ) √(v + ε) + m, by the running averages."""
        scale = self._scale(self.variance)
        return (z - self.beta) / scale + self.mean, -scale.log().sum().expand(z.shape[:-1])

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """z = exp(γ) (x - m) / √(v + ε) + β."""
        mean, variance = self.mean, self.variance
        # A batch of no rows has no statistics, and would leave NaN in the averages.
        if self.training and x.numel():
            rows = x.reshape(-1, self.features)
            batch_mean, batch_variance = moments(rows)
            self._mix(batch_mean.detach(), batch_variance.detach())
            # Copies: the averages change again before this batch's backward pass ends.
            mean = self.mean.clone() if self.moving else batch_mean
            variance = self.variance.clone() if self.moving else batch_variance
        scale = self._scale(variance)
        return (x - mean) * scale + self.beta, scale.log().sum().expand(x.shape[:-1])

    def _scale(self, variance: Tensor) -> Tensor:
        return self.log_gamma.exp() * torch.rsqrt(variance + self.eps)

    @torch.no_grad()
    def _mix(self, mean: Tensor, variance: Tensor) -> None:
        # The first batch counts whole: the averages' start is no data. On the device, no branch.
        keep = self.momentum * (self.batches > 0).to(mean.dtype)
        self.mean.mul_(keep).add_((1 - keep) * mean)
        self.variance.mul_(keep).add_((1 - keep) * variance)
        self.batches += 1
