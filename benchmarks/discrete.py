"""Discrete flows beside zuko's, nflows' and normflows': a training iteration, a density, a sample.

    python benchmarks/discrete.py iteration --core 1
    python benchmarks/discrete.py density --flows maf --cases 43x512 --layers 2 5 10

The same number of layers, the same widths of the two hidden layers, relu, Adam with torch's
defaults, the same rows, in alternating runs of one process. Arms differ in what their papers left
open: bounds of scales, masks of couplings (zuko and ours odd-even, normflows halves), and NICE's
diagonal scale, which ours alone has. normflows' autoregressive layer takes D passes for a density
and is left out of ``maf``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec

import torch
from common import alternate, machine, pin, ratio, spread, table, write_result
from torch import Tensor, nn

from baselines import MAF, NICE, RealNVP

LogProb = Callable[[Tensor], Tensor]
Sample = Callable[[int], object]
Arm = tuple[nn.Module, LogProb, Sample]
OURS = {"maf": MAF, "realnvp": RealNVP, "nice": NICE}
CASES = {"6x100": (6, 100), "21x256": (21, 256), "43x512": (43, 512), "63x512": (63, 512)}


def ours(kind: str, features: int, width: int, layers: int) -> Arm:
    """Ours, its networks' last layers no longer zero."""
    flow = OURS[kind](features, layers=layers, hidden=(width, width))
    for part in flow.parameters():
        if not part.any():
            nn.init.normal_(part, std=0.01)
    return flow, flow.log_prob, flow.sample


def zuko_arm(kind: str, features: int, width: int, layers: int) -> Arm:
    """zuko's."""
    import zuko

    family = zuko.flows.MAF if kind == "maf" else zuko.flows.NICE
    # Its NICE is affine, as RealNVP is, unless told otherwise.
    only_add = {"univariate": zuko.transforms.AdditiveTransform, "shapes": [()]}
    settings = only_add if kind == "nice" else {}
    flow = family(features, transforms=layers, hidden_features=(width, width), **settings)
    return flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,))


def nflows_arm(kind: str, features: int, width: int, layers: int) -> Arm:
    """nflows': feed-forward networks in both, not its residual default."""
    from nflows.distributions.normal import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import MLP
    from nflows.transforms import (
        AdditiveCouplingTransform,
        AffineCouplingTransform,
        CompositeTransform,
        MaskedAffineAutoregressiveTransform,
        ReversePermutation,
    )

    parts: list[nn.Module] = []
    coupling = AdditiveCouplingTransform if kind == "nice" else AffineCouplingTransform
    for layer in range(layers):
        if kind == "maf":
            parts.append(ReversePermutation(features))
            parts.append(
                MaskedAffineAutoregressiveTransform(
                    features, hidden_features=width, num_blocks=1, use_residual_blocks=False
                )
            )
        else:
            mask = torch.arange(features) % 2 == layer % 2
            parts.append(coupling(mask, lambda i, o: _Net(MLP([i], [o], [width] * 2))))
    flow = Flow(CompositeTransform(parts), StandardNormal([features]))
    return flow, flow.log_prob, flow.sample


class _Net(nn.Module):
    """nflows passes a context that its MLP does not take."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        found: Tensor = self.inner(x)
        return found


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
    return flow, flow.log_prob, flow.sample


PEERS = {"zuko": zuko_arm, "nflows": nflows_arm, "normflows": normflows_arm}


def work(what: str, arm: Arm, x: Tensor) -> Callable[[], object]:
    """What is timed."""
    flow, log_prob, sample = arm
    if what == "iteration":
        optimiser = torch.optim.Adam(flow.parameters(), lr=1e-4)

        def iterate() -> None:
            optimiser.zero_grad()
            (-log_prob(x).mean()).backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        return iterate
    flow.eval()
    call: Callable[[], object]
    call = (lambda: log_prob(x)) if what == "density" else (lambda: sample(len(x)))
    return torch.no_grad()(call)


def arms_of(
    what: str, kind: str, features: int, width: int, layers: int, x: Tensor
) -> dict[str, Callable[[], object]]:
    """Ours and those of the peers that are installed and have the flow, by name."""
    arms = {"ours": work(what, ours(kind, features, width, layers), x)}
    for name, build in PEERS.items():
        if find_spec(name) and not (name == "normflows" and kind == "maf"):
            arms[name] = work(what, build(kind, features, width, layers), x)
    return arms


def main() -> None:
    """Time every arm; print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["iteration", "density", "sample"])
    parser.add_argument("--flows", nargs="+", choices=list(OURS), default=["maf", "realnvp"])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["6x100", "43x512"])
    parser.add_argument("--layers", nargs="+", type=int, default=[5])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--core", type=int, default=0)
    options = parser.parse_args()
    pin(options.core)
    torch.set_num_threads(1)
    rows = []
    for kind in options.flows:
        for case in options.cases:
            for layers in options.layers:
                features, width = CASES[case]
                torch.manual_seed(0)
                x = torch.randn(options.rows, features)
                arms = arms_of(options.what, kind, features, width, layers, x)
                times = alternate(arms, runs=options.runs, warmup=3)
                for name, seconds in times.items():
                    rows.append(
                        (
                            f"{kind} D={features} H={width} K={layers}",
                            name,
                            spread(seconds),
                            ratio(times, "ours", name),
                        )
                    )
                    print(*rows[-1], sep=" | ", flush=True)
    facts = ", ".join(f"{key} {value}" for key, value in machine().items())
    header = ("flow", "arm", options.what, "ours / arm")
    text = table(header, rows) + f"\n{options.rows} rows; {facts}"
    write_result(f"discrete_{options.what}", text)


if __name__ == "__main__":
    main()
