"""Flows of zuko, nflows and normflows by name, so that they stand in a comparison as they are.

    cflows compare --models maf zuko:MAF nflows:maf spline "zuko:NSF(bins=16)" normflows:realnvp

A name is ``LIBRARY:FLOW``, with keywords of the library's own in brackets. Features, depth and
widths come from the comparison where the library has them. The library's modules do the work, in
its own way and at its own cost; the base is a standard normal, and the map behind the flow is the
one that every model of a comparison has.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from baselines.models.builtin import MODELS
from baselines.models.model import HIDDEN, Model, ModelError
from cflows import Bijector, Flow, adapt
from cflows.core.bijector import Mapped

__all__ = ["LIBRARIES", "PeerBijector", "found"]

Builder = Callable[..., nn.Module]
"""(features, context, depth, hidden, **settings) -> the library's flow."""

LIBRARIES = ("zuko", "nflows", "normflows")
TWINS = {
    "maf": "maf",
    "nsf": "spline",
    "nice": "realnvp",  # zuko's has affine couplings
    "realnvp": "realnvp",
    "cnf": "ffjord",
    "planar": "planar",
}
"""Ours whose depths, steps and rate a flow is trained with."""


class PeerBijector(Bijector):
    """Another library's flow, built by name, without its base.

    Args:
        name: ``LIBRARY:FLOW``.
        features: D.
        depth: of its transforms, where it has several.
        context_features: C.
        hidden: widths of its networks; of one width alone their mean.
        settings: keywords of its own.

    Raises:
        ModelError: the library is not installed, has no such flow, or does not take the keywords.

    """

    def __init__(
        self,
        name: str,
        features: int,
        depth: int = 1,
        *,
        context_features: int = 0,
        hidden: Sequence[int] = HIDDEN,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(features, context_features)
        library, _, flow = name.partition(":")
        build = _builder(library, flow)
        try:
            built = build(features, context_features, depth, tuple(hidden), **(settings or {}))
        except ModelError:
            raise
        except Exception as error:  # whatever the library makes of the keywords
            raise ModelError(f"{name} cannot be built: {' '.join(str(error).split())}") from error
        self.inner = adapt(built, context_features=context_features).bijector

    def forward_and_log_det(self, z: Tensor, context: Tensor | None = None) -> Mapped:
        """Noise to data."""
        return self.inner.forward_and_log_det(z, context)

    def inverse_and_log_det(self, x: Tensor, context: Tensor | None = None) -> Mapped:
        """Data to noise."""
        return self.inner.inverse_and_log_det(x, context)


@functools.cache
def found(name: str) -> Model:
    """The model behind ``LIBRARY:FLOW`` or ``LIBRARY:FLOW(KEYWORD=VALUE, ...)``.

    Raises:
        ModelError: see ``PeerBijector``; or a name that cannot be read.

    """
    plain, settings = _read(name)
    twin = MODELS[TWINS.get(plain.partition(":")[2].lower(), "maf")]

    def core(features: int, depth: int, hidden: Sequence[int] = HIDDEN) -> Flow:
        return Flow(PeerBijector(plain, features, depth, hidden=hidden, settings=settings))

    # Now, and not in a cell: a mistake should be told before anything is trained.
    with torch.random.fork_rng(devices=[]):
        core(3, 1)
    depths = twin.depths if _has_depth(plain) else (1,)
    return replace(twin, label=name, core=core, depths=depths)


def _read(name: str) -> tuple[str, dict[str, Any]]:
    """The name without its keywords, and these."""
    plain, bracket, _ = name.partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(name.partition(":")[2], mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        settings = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise ModelError(
            f"{name!r} cannot be read: write LIBRARY:FLOW(KEYWORD=NUMBER, ...)"
        ) from None
    return plain, settings


def _has_depth(name: str) -> bool:
    library, _, flow = name.partition(":")
    return library != "zuko" or _is_composed(_zuko_flows()[flow])


def _builder(library: str, flow: str) -> Builder:
    if library not in LIBRARIES:
        raise ModelError(f"no library is called {library!r}; known are {', '.join(LIBRARIES)}")
    if not find_spec(library):
        raise ModelError(
            f"{library}:{flow} needs {library}: pip install {library}, or 'cflows[peers]' for all"
        )
    builders = _zuko_builders() if library == "zuko" else BUILDERS[library]
    if flow not in builders:
        raise ModelError(
            f"{library} has no flow {flow!r} here; known are {', '.join(builders)}; "
            "cflows.adapt takes any that you have built"
        )
    return builders[flow]


def _zuko_flows() -> dict[str, Any]:
    """Its flows from a standard normal."""
    import zuko

    names = ("MAF", "NSF", "NICE", "NAF", "UNAF", "SOSPF", "BPF", "GF", "CNF")
    return {name: getattr(zuko.flows, name) for name in names if hasattr(zuko.flows, name)}


def _is_composed(flow: type) -> bool:
    """Whether it has several transforms; a subclass passes keywords on."""
    return any("transforms" in inspect.signature(kind).parameters for kind in flow.__mro__[:-1])


def _zuko_builders() -> dict[str, Builder]:
    return {name: functools.partial(_zuko, flow) for name, flow in _zuko_flows().items()}


def _zuko(
    flow: Any, features: int, context: int, depth: int, hidden: Sequence[int], **settings: Any
) -> nn.Module:
    own: dict[str, Any] = {"hidden_features": hidden}
    if _is_composed(flow):
        own["transforms"] = depth
    elif depth != 1:
        raise ModelError(f"zuko:{flow.__name__} is one transform: leave its depth at 1")
    built: nn.Module = flow(features, context, **{**own, **settings})
    return built


def _mean(hidden: Sequence[int]) -> int:
    return round(sum(hidden) / len(hidden))


def _nflows(parts: Builder, reverses: bool) -> Builder:
    """A flow of nflows, as its own ``nflows.flows`` put them together, with a context as well."""

    def build(
        features: int, context: int, depth: int, hidden: Sequence[int], **settings: Any
    ) -> nn.Module:
        from nflows.distributions.normal import StandardNormal
        from nflows.flows.base import Flow as Theirs
        from nflows.transforms.base import CompositeTransform
        from nflows.transforms.permutations import ReversePermutation

        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [ReversePermutation(features)] if reverses else []
            layers.append(parts(index, features, context or None, hidden, **settings))
        built: nn.Module = Theirs(CompositeTransform(layers), StandardNormal([features]))
        return built

    return build


def _nflows_maf(
    index: int, features: int, context: int | None, hidden: Sequence[int], **settings: Any
) -> nn.Module:
    from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform

    own = {"num_blocks": len(hidden), **settings}
    part: nn.Module = MaskedAffineAutoregressiveTransform(
        features, _mean(hidden), context_features=context, **own
    )
    return part


def _nflows_nsf(
    index: int, features: int, context: int | None, hidden: Sequence[int], **settings: Any
) -> nn.Module:
    from nflows.transforms import autoregressive

    own = {"num_bins": 8, "tails": "linear", "tail_bound": 5.0, "num_blocks": len(hidden)}
    part: nn.Module = autoregressive.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        features, _mean(hidden), context_features=context, **{**own, **settings}
    )
    return part


def _nflows_realnvp(
    index: int, features: int, context: int | None, hidden: Sequence[int], **settings: Any
) -> nn.Module:
    from nflows.nn.nets import ResidualNet
    from nflows.transforms.coupling import AffineCouplingTransform

    mask = torch.ones(features)
    mask[index % 2 :: 2] = -1
    own = {"num_blocks": len(hidden), **settings}
    part: nn.Module = AffineCouplingTransform(
        mask,
        lambda inputs, outputs: ResidualNet(
            inputs, outputs, _mean(hidden), context_features=context, **own
        ),
    )
    return part


def _normflows(parts: Callable[..., Sequence[nn.Module]]) -> Builder:
    def build(
        features: int, context: int, depth: int, hidden: Sequence[int], **settings: Any
    ) -> nn.Module:
        import normflows as nf

        flows = [
            part
            for _ in range(depth)
            for part in parts(nf, features, context or None, hidden, **settings)
        ]
        base = nf.distributions.DiagGaussian(features, trainable=False)
        kind = nf.ConditionalNormalizingFlow if context else nf.NormalizingFlow
        built: nn.Module = kind(base, flows)
        return built

    return build


def _normflows_realnvp(
    nf: Any, features: int, context: int | None, hidden: Sequence[int], **settings: Any
) -> list[nn.Module]:
    if context:
        raise ModelError("normflows:realnvp takes no context: take normflows:maf or normflows:nsf")
    kept, moved = -(-features // 2), features // 2
    network = nf.nets.MLP([kept, *hidden, 2 * moved], init_zeros=True)
    return [
        nf.flows.AffineCouplingBlock(network, **settings),
        nf.flows.Permute(features, mode="swap"),
    ]


def _normflows_maf(
    nf: Any, features: int, context: int | None, hidden: Sequence[int], **settings: Any
) -> list[nn.Module]:
    own = {"num_blocks": len(hidden), **settings}
    layer = nf.flows.MaskedAffineAutoregressive(
        features, _mean(hidden), context_features=context, **own
    )
    return [layer, nf.flows.Permute(features, mode="swap")]


def _normflows_nsf(
    nf: Any, features: int, context: int | None, hidden: Sequence[int], **settings: Any
) -> list[nn.Module]:
    own = {"tail_bound": 5, **settings}
    layer = nf.flows.AutoregressiveRationalQuadraticSpline(
        features, len(hidden), _mean(hidden), num_context_channels=context, **own
    )
    return [layer, nf.flows.Permute(features, mode="swap")]


BUILDERS: dict[str, dict[str, Builder]] = {
    "nflows": {
        "maf": _nflows(_nflows_maf, reverses=True),
        "nsf": _nflows(_nflows_nsf, reverses=True),
        "realnvp": _nflows(_nflows_realnvp, reverses=False),
    },
    "normflows": {
        "realnvp": _normflows(_normflows_realnvp),
        "maf": _normflows(_normflows_maf),
        "nsf": _normflows(_normflows_nsf),
    },
}
