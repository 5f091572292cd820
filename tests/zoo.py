"""One dictionary of cases drives every contract test.

A new bijector or flow is tested the moment it is listed here, and what sets it apart stands beside
its constructor. ``perturbed`` moves every parameter by N(0, 0.3²), since a flow that starts as the
identity passes everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

import cflows
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
    ImageCoupling,
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
    ConvField,
    DiagonalScale,
    ElementwiseAffine,
    Exp,
    Flow,
    Inverse,
    LeakyReLU,
    Log,
    Logistic,
    Logit,
    Margins,
    MixtureOfGaussians,
    Normal,
    ODEBijector,
    ResidualField,
    Sigmoid,
    SinhArcsinh,
    Softplus,
    Softsign,
    StudentT,
    Tanh,
    TorchBase,
    Whitening,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A constructor of (features, context features), and what is true of what it builds."""

    build: Callable[[int, int], Flow | Bijector]
    least_features: int = 1
    domain: Callable[[Tensor], Tensor] | None = None
    """A map of R^D into what forward takes; None where that is all of R^D."""
    surjective: bool = True
    """Forward reaches all of R^D; else inverse takes values of forward only."""
    context: bool = True
    parameters: bool = True
    continuous: bool = False
    """An adaptive solve: one that carries a log-determinant takes other steps than one without."""
    first_order: str = ""
    """The direction that is solved by an inversion, which is differentiated once."""
    rsample: bool = True
    kinked: bool = False
    """The density is continuous only: quadrature converges slowly at the kinks."""
    apart_in_training: bool = True
    """Rows are apart in training too: no batch statistics, no power iteration that moves on."""
    torch_func: bool = True
    """The log-density goes through torch.func; a cached inversion refuses, and says so."""

    def make(self, features: int, context: int = 0, **where: object) -> Flow | Bijector:
        return perturbed(self.build(features, context), **where)

    def bijector(self, features: int, context: int = 0, **where: object) -> Bijector:
        """The map alone, without a flow's base."""
        made = self.make(features, context, **where)
        return made.bijector if isinstance(made, Flow) else made

    def noise(self, *shape: int, **where: object) -> Tensor:
        """What forward takes."""
        z = draws(*shape, **where)
        return z if self.domain is None else self.domain(z)

    def data(self, f: Bijector, *shape: int, **where: object) -> Tensor:
        """What the inverse of ``f``, this case's map, takes."""
        x = draws(*shape, **where)
        return x if self.surjective else f.forward(x).detach()

    def tolerance(self, dtype: torch.dtype) -> float:
        if dtype == torch.float32:
            return 2e-3
        # Ten times the solver's tolerance.
        return 1e-8 if self.continuous else 1e-9


def draws(*shape: int, dtype: torch.dtype, device: str | torch.device = "cpu") -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(device, dtype)


def perturbed(
    module: nn.Module, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu"
) -> nn.Module:
    """The module in evaluation mode, every parameter moved by N(0, 0.3²), from a fixed seed."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.to(device, dtype).eval()


def of(
    cls: Callable[..., Flow | Bijector], **settings: object
) -> Callable[[int, int], Flow | Bijector]:
    return lambda d, c: cls(d, context_features=c, **settings)


TIGHT = Adaptive("dopri5", rtol=1e-9, atol=1e-9)


def _matrix(features: int) -> Tensor:
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

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        parts = [x, t.expand(len(x), 1)] + ([] if context is None else [context])
        return self.outer(torch.tanh(self.inner(torch.cat(parts, dim=1))))


def _foreign(d: int, c: int) -> ODEBijector:
    return ODEBijector(ForeignField(d, c), evaluation_solver=TIGHT)


def _residual_field(d: int, c: int) -> ODEBijector:
    field = ResidualField(d, context_features=c, width=8, blocks=2, time_frequencies=2)
    return ODEBijector(field, evaluation_solver=TIGHT)


def _ode_of(field: nn.Module) -> ODEBijector:
    return ODEBijector(field, evaluation_solver=TIGHT)


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


def _knots(splines: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places and values that ascend and positive slopes, the first one 1."""
    generator = torch.Generator().manual_seed(seed)
    steps = 0.2 + torch.rand(2, splines, 6, generator=generator, dtype=torch.float64)
    slopes = 0.3 + torch.rand(splines, 6, generator=generator, dtype=torch.float64)
    slopes[:, 0] = 1
    places, values = steps.cumsum(-1) - 2
    return places, values, slopes


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

FLOWS: dict[str, Case] = {
    "ffjord": Case(
        of(FFJORD, hidden=(8, 8), trainable_end_time=True, evaluation_solver=TIGHT),
        continuous=True,
        torch_func=False,
    ),
    "ffjord-2-blocks-concat-softplus": Case(
        lambda d, c: FFJORD(
            d,
            context_features=c,
            hidden=(8,),
            blocks=2,
            layer="concat",
            activation="softplus",
            base=Normal(d, learnable=True),
            evaluation_solver=TIGHT,
        ),
        continuous=True,
        torch_func=False,
    ),
    "ffjord-spectral": Case(
        of(FFJORD, hidden=(8,), field={"spectral": True}, evaluation_solver=TIGHT),
        continuous=True,
        apart_in_training=False,
        torch_func=False,
    ),
    "maf": Case(of(MAF, layers=3, **SMALL), first_order="forward"),
    "maf-random-tanh": Case(
        of(MAF, layers=3, order="random", activation="tanh", **SMALL), first_order="forward"
    ),
    "maf-residual-batch-norm": Case(
        of(MAF, layers=2, residual=True, batch_norm=True, **SMALL),
        first_order="forward",
        apart_in_training=False,
    ),
    "maf-jacobi": Case(of(MAF, layers=2, inversion="jacobi", **SMALL), first_order="forward"),
    "maf-sequential": Case(
        of(MAF, layers=2, inversion="sequential", hidden_degrees="random", **SMALL)
    ),
    "iaf": Case(of(IAF, layers=3, **SMALL), first_order="inverse", torch_func=False),
    "iaf-random": Case(
        of(IAF, layers=3, order="random", **SMALL), first_order="inverse", torch_func=False
    ),
    "realnvp": Case(of(RealNVP, layers=3, **SMALL), least_features=2),
    "realnvp-halves": Case(of(RealNVP, layers=3, mask="halves", **SMALL), least_features=2),
    "realnvp-random": Case(of(RealNVP, layers=3, mask="random", **SMALL), least_features=2),
    "realnvp-separate": Case(
        of(RealNVP, layers=3, networks="separate", activation="elu", **SMALL), least_features=2
    ),
    "realnvp-batch-norm": Case(
        of(RealNVP, layers=3, batch_norm=True, activation="tanh", **SMALL),
        least_features=2,
        apart_in_training=False,
    ),
    "nsf": Case(of(NSF, layers=3, **SMALL), least_features=2),
    "nsf-halves": Case(
        of(NSF, layers=3, mask="halves", bins=4, bound=2.0, **SMALL), least_features=2
    ),
    "nsf-autoregressive": Case(
        of(NSF, layers=2, passes="autoregressive", bins=5, **SMALL),
        first_order="forward",
        kinked=True,
    ),
    "nsf-affine-tails": Case(
        of(NSF, layers=2, passes="autoregressive", bins=3, tails="affine", **SMALL),
        first_order="forward",
        kinked=True,
    ),
    "maf-mog": Case(of(MAF, layers=2, components=3, **SMALL), first_order="forward", rsample=False),
    "nice": Case(of(NICE, layers=3, **SMALL), least_features=2),
    "planar": Case(of(PlanarFlow, layers=4)),
    "radial": Case(of(RadialFlow, layers=4)),
    "sylvester": Case(
        lambda d, c: SylvesterFlow(d, context_features=c, layers=3, hidden=max(1, d // 2))
    ),
    "sylvester-alternate": Case(of(SylvesterFlow, layers=2, orthogonal="alternate")),
    "realnvp-logistic": Case(
        lambda d, c: RealNVP(
            d, context_features=c, layers=2, base=Logistic(d, learnable=True), **SMALL
        ),
        least_features=2,
    ),
    "maf-student": Case(
        lambda d, c: MAF(d, context_features=c, layers=1, base=StudentT(d, df=30.0), **SMALL),
        first_order="forward",
    ),
    "maf-mixture-base": Case(
        lambda d, c: MAF(d, context_features=c, layers=2, base=MixtureOfGaussians(d, 3), **SMALL),
        first_order="forward",
        rsample=False,
    ),
    "iaf-torch-base": Case(
        lambda d, c: IAF(d, context_features=c, layers=2, base=_correlated(d), **SMALL),
        first_order="inverse",
        torch_func=False,
    ),
    "normalised": Case(
        lambda d, c: Flow(
            Chain(
                _batch_norm(d),
                AutoregressiveAffine(d, context_features=c, hidden=(12,)),
                _act_norm(d),
            )
        ),
        first_order="forward",
        apart_in_training=False,
    ),
    "residual": Case(of(ResidualFlow, layers=3, **SMALL), first_order="forward"),
    "residual-tanh": Case(
        of(ResidualFlow, layers=2, hidden=(3,), activation="tanh", coefficient=0.9),
        first_order="forward",
    ),
    "maf-lu": Case(
        lambda d, c: Flow(
            Chain(
                AutoregressiveAffine(d, context_features=c, hidden=(12,)),
                LULinear(d, start="rotation"),
                Permutation(d, "random"),
            )
        ),
        first_order="forward",
    ),
    "chain": Case(
        lambda d, c: Flow(
            Chain(
                AutoregressiveAffine(d, context_features=c, order="reversed", hidden=(12,)),
                _whitening(d),
            )
        ),
        first_order="forward",
    ),
}

BIJECTORS: dict[str, Case] = {
    "affine": Case(
        lambda d, c: Affine([1.0 + k for k in range(d)], [0.5 + k for k in range(d)]),
        context=False,
        parameters=False,
    ),
    "diagonal-scale": Case(lambda d, c: DiagonalScale(d), context=False),
    "whitening": Case(lambda d, c: _whitening(d), context=False, parameters=False),
    "margins": Case(
        lambda d, c: Margins(*_knots(d, 2)), context=False, parameters=False, kinked=True
    ),
    "radial-lengths": Case(
        lambda d, c: cflows.Radial(d, *(knots[0] for knots in _knots(1, 3))),
        context=False,
        parameters=False,
        kinked=True,
    ),
    "autoregressive-data": Case(of(AutoregressiveAffine, hidden=(12,)), first_order="forward"),
    "autoregressive-noise": Case(
        of(AutoregressiveAffine, hidden=(12, 12), conditions_on="noise", order="random"),
        first_order="inverse",
    ),
    "coupling": Case(
        lambda d, c: Coupling(d, [k % 2 == 0 for k in range(d)], context_features=c, hidden=(12,)),
        least_features=2,
    ),
    "coupling-additive": Case(
        lambda d, c: Coupling(
            d, [k >= 1 for k in range(d)], context_features=c, hidden=(12,), transformer=Additive()
        ),
        least_features=2,
    ),
    "coupling-spline": Case(
        lambda d, c: _coupling(d, c, RationalQuadratic(5, 2.0)), least_features=2
    ),
    "coupling-spline-affine": Case(
        lambda d, c: _coupling(d, c, AffineSpline(5, 2.0)), least_features=2
    ),
    "planar": Case(of(Planar)),
    "radial": Case(of(Radial)),
    "sylvester-identity": Case(
        lambda d, c: Sylvester(d, context_features=c, hidden=max(1, d - 1), orthogonal="identity")
    ),
    "sylvester-reversed": Case(of(Sylvester, orthogonal="reversed")),
    "sylvester-householder": Case(
        lambda d, c: Sylvester(d, context_features=c, hidden=max(1, d - 1))
    ),
    "ode-concatsquash": Case(lambda d, c: _ode(d, c), continuous=True),
    "ode-concat": Case(lambda d, c: _ode(d, c, layer="concat", end_time=0.7), continuous=True),
    "ode-softplus-one-layer": Case(
        lambda d, c: _ode(d, c, activation="softplus", hidden=(8,)), continuous=True
    ),
    "ode-three-layers": Case(lambda d, c: _ode(d, c, hidden=(8, 6, 7)), continuous=True),
    "ode-foreign": Case(_foreign, continuous=True),
    "ode-residual": Case(_residual_field, continuous=True),
    "ode-convolutions": Case(
        lambda d, c: _ode_of(ConvField(_image(d), hidden=(3,), context_features=c)),
        continuous=True,
    ),
    "image-coupling-channels": Case(
        lambda d, c: ImageCoupling(_image(d), hidden=3, network="glow", context_features=c),
        least_features=4,
    ),
    "image-coupling-checkerboard": Case(
        lambda d, c: ImageCoupling(
            _image(d), mask="checkerboard", turned=True, hidden=3, context_features=c
        ),
        least_features=4,
    ),
    "act-norm": Case(lambda d, c: _act_norm(d), context=False),
    "act-norm-channels": Case(lambda d, c: _act_norm(d, shape=(d // 2, 2, 1)), context=False),
    "batch-norm": Case(lambda d, c: _batch_norm(d), context=False),
    "batch-norm-moving": Case(lambda d, c: _batch_norm(d, moving=True), context=False),
    "elementwise-affine": Case(lambda d, c: ElementwiseAffine(d), context=False),
    "sinh-arcsinh": Case(lambda d, c: SinhArcsinh(d), context=False),
    "leaky-relu": Case(lambda d, c: LeakyReLU(d, slope=0.3), context=False, parameters=False),
    "softsign": Case(lambda d, c: Softsign(d), surjective=False, context=False, parameters=False),
    "tanh": Case(lambda d, c: Tanh(d), surjective=False, context=False, parameters=False),
    "sigmoid": Case(lambda d, c: Sigmoid(d), surjective=False, context=False, parameters=False),
    "sigmoid-alpha": Case(
        lambda d, c: Sigmoid(d, alpha=0.05), surjective=False, context=False, parameters=False
    ),
    "logit": Case(lambda d, c: Logit(d), domain=torch.sigmoid, context=False, parameters=False),
    "logit-alpha": Case(
        lambda d, c: Logit(d, alpha=0.05), domain=torch.sigmoid, context=False, parameters=False
    ),
    "exp": Case(lambda d, c: Exp(d), surjective=False, context=False, parameters=False),
    "log": Case(lambda d, c: Log(d), domain=torch.exp, context=False, parameters=False),
    "softplus": Case(lambda d, c: Softplus(d), surjective=False, context=False, parameters=False),
    "bounded": Case(
        lambda d, c: Bounded(
            [(-1.0, None, 0.5, None)[k % 4] for k in range(d)],
            [(2.0, None, None, 3.0)[k % 4] for k in range(d)],
        ),
        surjective=False,
        context=False,
        parameters=False,
    ),
    "residual": Case(of(Residual, hidden=(12, 12)), first_order="forward"),
    "residual-elu": Case(
        of(Residual, hidden=(12, 3, 12), activation="elu", log_det="exact"), first_order="forward"
    ),
    "residual-inverse": Case(
        lambda d, c: Inverse(Residual(d, context_features=c, hidden=(12,))), first_order="inverse"
    ),
    "permutation": Case(lambda d, c: Chain(DiagonalScale(d), Permutation(d)), context=False),
    "lu": Case(lambda d, c: LULinear(d), context=False),
    "lu-rotation": Case(lambda d, c: LULinear(d, bias=False, start="rotation"), context=False),
    "householder": Case(lambda d, c: _between_scales(Householder(d)), context=False),
    "householder-odd": Case(
        lambda d, c: _between_scales(Householder(d, reflections=3)), context=False
    ),
    "invertible-1x1": Case(lambda d, c: Invertible1x1(_image(d)), context=False),
    "invertible-1x1-householder": Case(
        lambda d, c: _between_scales(Invertible1x1(_image(d), mix="householder")), context=False
    ),
    "squeeze": Case(lambda d, c: Chain(DiagonalScale(d), Squeeze((1, 2, d // 2))), context=False),
    "multiscale": Case(
        lambda d, c: MultiScale(
            AutoregressiveAffine(d // 2, context_features=c, hidden=(12,)),
            Coupling(d, [k % 2 == 0 for k in range(d)], context_features=c, hidden=(12,)),
        ),
        first_order="forward",
    ),
    "multiscale-image": Case(
        lambda d, c: MultiScale(LULinear(d // 2), Chain(LULinear(d), Squeeze((1, 2, d // 2)))),
        context=False,
    ),
    "inverse": Case(
        lambda d, c: Inverse(AutoregressiveAffine(d, context_features=c, hidden=(12,))),
        first_order="inverse",
    ),
    "chain": Case(
        lambda d, c: Chain(
            DiagonalScale(d),
            AutoregressiveAffine(d, context_features=c, hidden=(12,)),
            _whitening(d),
        ),
        first_order="forward",
    ),
}

ALL = {**{f"flow:{name}": case for name, case in FLOWS.items()}, **BIJECTORS}


def cases(
    among: dict[str, T], chosen: Callable[[T], bool] = lambda case: True
) -> pytest.MarkDecorator:
    """A test for each entry, or for the chosen ones: its argument is ``case``, its id the name."""
    kept = {name: case for name, case in among.items() if chosen(case)}
    return pytest.mark.parametrize("case", kept.values(), ids=list(kept))
