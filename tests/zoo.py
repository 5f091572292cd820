"""One dictionary of named constructors drives every contract test.

A new bijector or flow is tested the moment it is listed here. Constructors take (features,
context_features); ``perturbed`` moves every parameter by N(0, 0.3²), since a flow that starts as
the identity passes everything.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from baselines import (
    IAF,
    MAF,
    NICE,
    NSF,
    Additive,
    AffineSpline,
    AutoregressiveAffine,
    Coupling,
    Householder,
    Invertible1x1,
    LULinear,
    MultiScale,
    Permutation,
    Planar,
    PlanarFlow,
    Radial,
    RadialFlow,
    RationalQuadratic,
    RealNVP,
    Residual,
    ResidualFlow,
    Squeeze,
    Sylvester,
    SylvesterFlow,
    Transformer,
)
from cflows import (
    FFJORD,
    MLP,
    ActNorm,
    Adaptive,
    Affine,
    BatchNorm,
    Bijector,
    Bounded,
    Chain,
    DiagonalScale,
    ElementwiseAffine,
    Exp,
    Flow,
    Inverse,
    LeakyReLU,
    Log,
    Logistic,
    Logit,
    MixtureOfGaussians,
    Normal,
    ODEBijector,
    Sigmoid,
    SinhArcsinh,
    Softplus,
    Softsign,
    StudentT,
    Tanh,
    TorchBase,
    Whitening,
)

TIGHT = Adaptive("dopri5", rtol=1e-9, atol=1e-9)


def _matrix(features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(features, features, generator=generator, dtype=torch.float64)
    return torch.eye(features, dtype=torch.float64) * 2 + 0.3 * noise


def _whitening(features: int) -> Whitening:
    matrix = _matrix(features)
    log_det = float(torch.linalg.slogdet(matrix)[1])
    loc = torch.arange(features, dtype=torch.float64)
    return Whitening(loc, matrix, torch.linalg.inv(matrix), log_det)


def _ode(d: int, c: int, **settings: object) -> ODEBijector:
    field = MLP(d, context_features=c, hidden=settings.pop("hidden", (8, 8)), **_mlp(settings))  # type: ignore[arg-type]
    return ODEBijector(field, evaluation_solver=TIGHT, **settings)  # type: ignore[arg-type]


def _mlp(settings: dict[str, object]) -> dict[str, object]:
    return {k: settings.pop(k) for k in ("layer", "activation") if k in settings}


class ForeignField(nn.Module):
    """A field of which the package knows nothing."""

    def __init__(self, features: int, context_features: int) -> None:
        super().__init__()
        self.features, self.context_features = features, context_features
        self.inner = nn.Linear(features + context_features + 1, 8)
        self.outer = nn.Linear(8, features)

    def forward(
        self, t: torch.Tensor, x: torch.Tensor, context: torch.Tensor | None
    ) -> torch.Tensor:
        parts = [x, t.expand(len(x), 1)] + ([] if context is None else [context])
        return self.outer(torch.tanh(self.inner(torch.cat(parts, dim=1))))


def _foreign(d: int, c: int) -> ODEBijector:
    return ODEBijector(ForeignField(d, c), evaluation_solver=TIGHT)


def _correlated(features: int) -> TorchBase:
    law = torch.distributions.MultivariateNormal(
        torch.arange(features) / features, scale_tril=(0.5 * _matrix(features).float()).tril()
    )
    return TorchBase.of(law, learnable=True)


def _coupling(d: int, c: int, transformer: Transformer) -> Coupling:
    return Coupling(
        d,
        [k % 2 == 0 for k in range(d)],
        context_features=c,
        hidden=(12,),
        activation="silu",
        transformer=transformer,
    )


def _act_norm(features: int, **settings: object) -> ActNorm:
    """Initialised on a batch of its own."""
    layer = ActNorm(features, **settings)  # type: ignore[arg-type]
    layer.train().inverse(1 + 2 * torch.randn(9, features))
    return layer


def _batch_norm(features: int, **settings: object) -> BatchNorm:
    """With the averages of a batch."""
    layer = BatchNorm(features, **settings)  # type: ignore[arg-type]
    layer.train().inverse(1 + 2 * torch.randn(9, features))
    return layer


def _image(features: int) -> tuple[int, int, int]:
    """A shape of this many numbers, of two pixels where there are enough."""
    return (features // 2, 1, 2) if features >= 4 else (features, 1, 1)


def _between_scales(rotation: Bijector) -> Chain:
    """So that the length of an image depends on the rotation, as tests of gradients want it to."""
    d = rotation.features
    return Chain(DiagonalScale(d), rotation, DiagonalScale(d))


SMALL = {"hidden": (12, 12)}

FLOWS: dict[str, Callable[[int, int], Flow]] = {
    "ffjord": lambda d, c: FFJORD(
        d, context_features=c, hidden=(8, 8), trainable_end_time=True, evaluation_solver=TIGHT
    ),
    "ffjord-2-blocks-concat-softplus": lambda d, c: FFJORD(
        d,
        context_features=c,
        hidden=(8,),
        blocks=2,
        layer="concat",
        activation="softplus",
        base=Normal(d, learnable=True),
        evaluation_solver=TIGHT,
    ),
    "ffjord-spectral": lambda d, c: FFJORD(
        d, context_features=c, hidden=(8,), field={"spectral": True}, evaluation_solver=TIGHT
    ),
    "maf": lambda d, c: MAF(d, context_features=c, layers=3, **SMALL),
    "maf-random-tanh": lambda d, c: MAF(
        d, context_features=c, layers=3, order="random", activation="tanh", **SMALL
    ),
    "maf-residual-batch-norm": lambda d, c: MAF(
        d, context_features=c, layers=2, residual=True, batch_norm=True, **SMALL
    ),
    "maf-jacobi": lambda d, c: MAF(d, context_features=c, layers=2, inversion="jacobi", **SMALL),
    "maf-sequential": lambda d, c: MAF(
        d, context_features=c, layers=2, inversion="sequential", hidden_degrees="random", **SMALL
    ),
    "iaf": lambda d, c: IAF(d, context_features=c, layers=3, **SMALL),
    "iaf-random": lambda d, c: IAF(d, context_features=c, layers=3, order="random", **SMALL),
    "realnvp": lambda d, c: RealNVP(d, context_features=c, layers=3, **SMALL),
    "realnvp-halves": lambda d, c: RealNVP(d, context_features=c, layers=3, mask="halves", **SMALL),
    "realnvp-random": lambda d, c: RealNVP(d, context_features=c, layers=3, mask="random", **SMALL),
    "realnvp-separate": lambda d, c: RealNVP(
        d, context_features=c, layers=3, networks="separate", activation="elu", **SMALL
    ),
    "realnvp-batch-norm": lambda d, c: RealNVP(
        d, context_features=c, layers=3, batch_norm=True, activation="tanh", **SMALL
    ),
    "nsf": lambda d, c: NSF(d, context_features=c, layers=3, **SMALL),
    "nsf-halves": lambda d, c: NSF(
        d, context_features=c, layers=3, mask="halves", bins=4, bound=2.0, **SMALL
    ),
    "nsf-autoregressive": lambda d, c: NSF(
        d, context_features=c, layers=2, passes="autoregressive", bins=5, **SMALL
    ),
    "nsf-affine-tails": lambda d, c: NSF(
        d, context_features=c, layers=2, passes="autoregressive", bins=3, tails="affine", **SMALL
    ),
    "maf-mog": lambda d, c: MAF(d, context_features=c, layers=2, components=3, **SMALL),
    "nice": lambda d, c: NICE(d, context_features=c, layers=3, **SMALL),
    "planar": lambda d, c: PlanarFlow(d, context_features=c, layers=4),
    "radial": lambda d, c: RadialFlow(d, context_features=c, layers=4),
    "sylvester": lambda d, c: SylvesterFlow(d, context_features=c, layers=3, hidden=max(1, d // 2)),
    "sylvester-alternate": lambda d, c: SylvesterFlow(
        d, context_features=c, layers=2, orthogonal="alternate"
    ),
    "realnvp-logistic": lambda d, c: RealNVP(
        d, context_features=c, layers=2, base=Logistic(d, learnable=True), **SMALL
    ),
    "maf-student": lambda d, c: MAF(
        d, context_features=c, layers=1, base=StudentT(d, df=30.0), **SMALL
    ),
    "maf-mixture-base": lambda d, c: MAF(
        d, context_features=c, layers=2, base=MixtureOfGaussians(d, 3), **SMALL
    ),
    "iaf-torch-base": lambda d, c: IAF(
        d, context_features=c, layers=2, base=_correlated(d), **SMALL
    ),
    "normalised": lambda d, c: Flow(
        Chain(
            _batch_norm(d),
            AutoregressiveAffine(d, context_features=c, hidden=(12,)),
            _act_norm(d),
        )
    ),
    "residual": lambda d, c: ResidualFlow(d, context_features=c, layers=3, **SMALL),
    "residual-tanh": lambda d, c: ResidualFlow(
        d, context_features=c, layers=2, hidden=(3,), activation="tanh", coefficient=0.9
    ),
    "maf-lu": lambda d, c: Flow(
        Chain(
            AutoregressiveAffine(d, context_features=c, hidden=(12,)),
            LULinear(d, start="rotation"),
            Permutation(d, "random"),
        )
    ),
    "chain": lambda d, c: Flow(
        Chain(
            AutoregressiveAffine(d, context_features=c, order="reversed", hidden=(12,)),
            _whitening(d),
        )
    ),
}

BIJECTORS: dict[str, Callable[[int, int], Bijector]] = {
    "affine": lambda d, c: Affine([1.0 + k for k in range(d)], [0.5 + k for k in range(d)]),
    "diagonal-scale": lambda d, c: DiagonalScale(d),
    "whitening": lambda d, c: _whitening(d),
    "autoregressive-data": lambda d, c: AutoregressiveAffine(d, context_features=c, hidden=(12,)),
    "autoregressive-noise": lambda d, c: AutoregressiveAffine(
        d, context_features=c, hidden=(12, 12), conditions_on="noise", order="random"
    ),
    "coupling": lambda d, c: Coupling(
        d, [k % 2 == 0 for k in range(d)], context_features=c, hidden=(12,)
    ),
    "coupling-additive": lambda d, c: Coupling(
        d, [k >= 1 for k in range(d)], context_features=c, hidden=(12,), transformer=Additive()
    ),
    "coupling-spline": lambda d, c: _coupling(d, c, RationalQuadratic(5, 2.0)),
    "coupling-spline-affine": lambda d, c: _coupling(d, c, AffineSpline(5, 2.0)),
    "planar": lambda d, c: Planar(d, context_features=c),
    "radial": lambda d, c: Radial(d, context_features=c),
    "sylvester-identity": lambda d, c: Sylvester(
        d, context_features=c, hidden=max(1, d - 1), orthogonal="identity"
    ),
    "sylvester-reversed": lambda d, c: Sylvester(d, context_features=c, orthogonal="reversed"),
    "sylvester-householder": lambda d, c: Sylvester(d, context_features=c, hidden=max(1, d - 1)),
    "ode-concatsquash": lambda d, c: _ode(d, c),
    "ode-concat": lambda d, c: _ode(d, c, layer="concat", end_time=0.7),
    "ode-softplus-one-layer": lambda d, c: _ode(d, c, activation="softplus", hidden=(8,)),
    "ode-three-layers": lambda d, c: _ode(d, c, hidden=(8, 6, 7)),
    "ode-foreign": _foreign,
    "act-norm": lambda d, c: _act_norm(d),
    "act-norm-channels": lambda d, c: _act_norm(d, shape=(d // 2, 2, 1)),
    "batch-norm": lambda d, c: _batch_norm(d),
    "batch-norm-moving": lambda d, c: _batch_norm(d, moving=True),
    "elementwise-affine": lambda d, c: ElementwiseAffine(d),
    "sinh-arcsinh": lambda d, c: SinhArcsinh(d),
    "leaky-relu": lambda d, c: LeakyReLU(d, slope=0.3),
    "softsign": lambda d, c: Softsign(d),
    "tanh": lambda d, c: Tanh(d),
    "sigmoid": lambda d, c: Sigmoid(d),
    "sigmoid-alpha": lambda d, c: Sigmoid(d, alpha=0.05),
    "logit": lambda d, c: Logit(d),
    "logit-alpha": lambda d, c: Logit(d, alpha=0.05),
    "exp": lambda d, c: Exp(d),
    "log": lambda d, c: Log(d),
    "softplus": lambda d, c: Softplus(d),
    "bounded": lambda d, c: Bounded(
        [(-1.0, None, 0.5, None)[k % 4] for k in range(d)],
        [(2.0, None, None, 3.0)[k % 4] for k in range(d)],
    ),
    "residual": lambda d, c: Residual(d, context_features=c, hidden=(12, 12)),
    "residual-elu": lambda d, c: Residual(
        d, context_features=c, hidden=(12, 3, 12), activation="elu", log_det="exact"
    ),
    "residual-inverse": lambda d, c: Inverse(Residual(d, context_features=c, hidden=(12,))),
    "permutation": lambda d, c: Chain(DiagonalScale(d), Permutation(d)),
    "lu": lambda d, c: LULinear(d),
    "lu-rotation": lambda d, c: LULinear(d, bias=False, start="rotation"),
    "householder": lambda d, c: _between_scales(Householder(d)),
    "householder-odd": lambda d, c: _between_scales(Householder(d, reflections=3)),
    "invertible-1x1": lambda d, c: Invertible1x1(_image(d)),
    "invertible-1x1-householder": lambda d, c: _between_scales(
        Invertible1x1(_image(d), mix="householder")
    ),
    "squeeze": lambda d, c: Chain(DiagonalScale(d), Squeeze((1, 2, d // 2))),
    "multiscale": lambda d, c: MultiScale(
        AutoregressiveAffine(d // 2, context_features=c, hidden=(12,)),
        Coupling(d, [k % 2 == 0 for k in range(d)], context_features=c, hidden=(12,)),
    ),
    "multiscale-image": lambda d, c: MultiScale(
        LULinear(d // 2), Chain(LULinear(d), Squeeze((1, 2, d // 2)))
    ),
    "inverse": lambda d, c: Inverse(AutoregressiveAffine(d, context_features=c, hidden=(12,))),
    "chain": lambda d, c: Chain(
        DiagonalScale(d),
        AutoregressiveAffine(d, context_features=c, hidden=(12,)),
        _whitening(d),
    ),
}

NEEDS_TWO = {
    name for name in (*FLOWS, *BIJECTORS) if name.startswith(("realnvp", "nice", "nsf", "coupling"))
} - {"nsf-autoregressive", "nsf-affine-tails"}
# Where forward is defined on a part of R^D: a map of all of R^D into it.
DOMAINS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "logit": torch.sigmoid,
    "logit-alpha": torch.sigmoid,
    "log": torch.exp,
}
# Whose forward does not reach all of R^D: inverse takes values of forward only.
PARTIAL_RANGE = {"softsign", "tanh", "sigmoid", "sigmoid-alpha", "exp", "softplus", "bounded"}
NO_PARAMETERS = {"affine", "whitening", "leaky-relu", *DOMAINS, *PARTIAL_RANGE}
NORMALIZATIONS = {"act-norm", "act-norm-channels", "batch-norm", "batch-norm-moving"}
NO_CONTEXT = {
    *("diagonal-scale", "elementwise-affine", "sinh-arcsinh", "permutation", "lu", "lu-rotation"),
    *("householder", "householder-odd", "invertible-1x1", "invertible-1x1-householder"),
    *("squeeze", "multiscale-image"),
    *NORMALIZATIONS,
    *NO_PARAMETERS,
}
NO_RSAMPLE = {"maf-mixture-base", "maf-mog"}
CONTINUOUS = {name for name in (*FLOWS, *BIJECTORS) if name.startswith(("ffjord", "ode"))}


def perturbed(
    module: nn.Module, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu"
) -> nn.Module:
    """The module in evaluation mode, every parameter moved by N(0, 0.3²), from a fixed seed."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.to(device, dtype).eval()
