"""Discrete flows beside zuko's, nflows' and normflows': a training iteration, a density, a sample.

    python benchmarks/discrete.py iteration --core 1
    python benchmarks/discrete.py density --flows maf --cases 43x512 --layers 2 5 10

The same number of layers, the same widths of the two hidden layers, relu, Adam, the same rows, in
alternating runs of one process. Arms differ in what their papers left open: bounds of scales, masks
of couplings (zuko and ours odd-even, normflows halves), and NICE's diagonal scale, which ours alone
has. normflows' autoregressive layer takes D passes for a density and is left out of ``maf``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from common import WORKS, Arm, Calls, alternate, begun, parser_of, ratio, report, spread, stir, work
from torch import Tensor, nn

from baselines import MAF, NICE, RealNVP

OURS = {"maf": MAF, "realnvp": RealNVP, "nice": NICE}
CASES = {"6x100": (6, 100), "21x256": (21, 256), "43x512": (43, 512), "63x512": (63, 512)}


def our_arm(kind: str, features: int, width: int, layers: int) -> Arm:
    """Ours."""
    flow = OURS[kind](features, layers=layers, hidden=(width, width))
    return Arm(flow, flow.log_prob, flow.sample)


def zuko_arm(kind: str, features: int, width: int, layers: int) -> Arm:
    """zuko's."""
    import zuko

    family = zuko.flows.MAF if kind == "maf" else zuko.flows.NICE
    # Its NICE is affine, as RealNVP is, unless told otherwise.
    only_add = {"univariate": zuko.transforms.AdditiveTransform, "shapes": [()]}
    settings = only_add if kind == "nice" else {}
    flow = family(features, transforms=layers, hidden_features=(width, width), **settings)
    return Arm(flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)))


def nflows_arm(kind: str, features: int, width: int, layers: int) -> Arm:
    """nflows': feed-forward networks in both, not its residual default."""
    from nflows import transforms
    from nflows.distributions.normal import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import MLP

    class Net(MLP):
        """A coupling passes a context that nflows' MLP does not take."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__([inputs], [outputs], [width] * 2)

        def forward(self, x: Tensor, context: None) -> Tensor:
            return super().forward(x)

    additive = transforms.AdditiveCouplingTransform
    coupling = additive if kind == "nice" else transforms.AffineCouplingTransform
    parts: list[nn.Module] = []
    for layer in range(layers):
        if kind == "maf":
            parts += [
                transforms.ReversePermutation(features),
                transforms.MaskedAffineAutoregressiveTransform(
                    features, hidden_features=width, num_blocks=1, use_residual_blocks=False
                ),
            ]
        else:
            parts.append(coupling(torch.arange(features) % 2 == layer % 2, Net))
    flow = Flow(transforms.CompositeTransform(parts), StandardNormal([features]))
    return Arm(flow, flow.log_prob, flow.sample)


def normflows_arm(kind: str, features: int, width: int, layers: int) -> Arm:
    """normflows': couplings of halves."""
    import normflows

    first = (features + 1) // 2
    scale = kind == "realnvp"
    parts: list[nn.Module] = []
    for _ in range(layers):
        net = normflows.nets.MLP([first, width, width, (1 + scale) * (features - first)])
        parts.append(normflows.flows.AffineCouplingBlock(net, scale=scale))
        parts.append(normflows.flows.Permute(features, mode="swap"))
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(features), parts)
    return Arm(flow, flow.log_prob, flow.sample)


PEERS = {"zuko": zuko_arm, "nflows": nflows_arm, "normflows": normflows_arm}


def arms_of(what: str, kind: str, features: int, width: int, layers: int, x: Tensor) -> Calls:
    """Ours, no parameter zero, and peers that are installed and have the flow, by name."""
    calls = {}
    for name, build in {"ours": our_arm, **PEERS}.items():
        if name == "ours" or (find_spec(name) and (name, kind) != ("normflows", "maf")):
            arm = build(kind, features, width, layers)
            arm.model.train(what == "iteration")
            if name == "ours":
                stir(arm.model)
            calls[name] = work(what, arm, x)
    return calls


def measured(options: argparse.Namespace) -> Iterator[tuple[object, ...]]:
    """The rows of the table."""
    for kind, case, layers in itertools.product(options.flows, options.cases, options.layers):
        features, width = CASES[case]
        torch.manual_seed(0)
        x = torch.randn(options.rows, features)
        arms = arms_of(options.what, kind, features, width, layers, x)
        times = alternate(arms, runs=options.runs, warmup=3)
        title = f"{kind} D={features} H={width} K={layers}"
        for name, seconds in times.items():
            yield title, name, spread(seconds), ratio(times, "ours", name)


def main() -> None:
    """Time every arm; print and write the table."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("what", choices=WORKS)
    add("--flows", nargs="+", choices=list(OURS), default=["maf", "realnvp"])
    add("--cases", nargs="+", choices=list(CASES), default=["6x100", "43x512"])
    add("--layers", nargs="+", type=int, default=[5])
    add("--rows", type=int, default=1000)
    add("--runs", type=int, default=15)
    options = begun(parser)
    header = ("flow", "arm", options.what, "ours / arm")
    report(f"discrete_{options.what}", header, measured(options), [f"{options.rows} rows"])


if __name__ == "__main__":
    main()
