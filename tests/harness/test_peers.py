"""Other libraries' flows as models of a comparison."""

from __future__ import annotations

import re

import pytest
import torch

from baselines.models import peers, registry, widths
from baselines.models.model import ModelError
from baselines.models.peers import BUILDERS, PeerBijector
from cflows import Affine, Flow, fit, load

ZUKO = ("MAF", "NSF", "NICE", "NAF", "UNAF", "SOSPF", "BPF", "GF", "CNF")
NAMES = [
    *(f"zuko:{name}" for name in ZUKO),
    *(f"{library}:{name}" for library, flows in BUILDERS.items() for name in flows),
]
SLOW = ("zuko:NAF", "zuko:UNAF", "zuko:CNF")  # inverted by bisection, or solved


@pytest.fixture(autouse=True)
def _installed(request):
    """Skip what is not there."""
    given = getattr(request.node, "callspec", None)
    library = "" if given is None else given.params["name"].partition(":")[0]
    if library in peers.LIBRARIES:
        pytest.importorskip(library)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_built_trained_saved_and_loaded(name, tmp_path):
    torch.manual_seed(0)
    depth = min(2, registry.find(name).depths[-1])
    end = Affine([0.0] * 3, [2.0] * 3)
    flow = registry.build(name, depth, end, seed=0, hidden=(8, 8))
    x = 2 * torch.randn(64, 3)
    fit(flow, x, steps=2, progress=False)
    flow.eval()
    log_prob = flow.log_prob(x[:8]).detach()
    assert log_prob.isfinite().all()
    z = flow.bijector.inverse(x[:8])
    torch.testing.assert_close(flow.bijector(z), x[:8], atol=2e-3, rtol=1e-3)
    flow.save(tmp_path / "peer.flow")
    torch.testing.assert_close(load(tmp_path / "peer.flow").log_prob(x[:8]).detach(), log_prob)
    assert registry.configuration(name, 3, depth)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("normflows:realnvp", *SLOW)]
)
def test_a_context(name):
    part = PeerBijector(name, 3, 1, context_features=2, hidden=(8, 8))
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    flow, x, c = Flow(part).eval(), torch.randn(20, 3), torch.randn(20, 2)
    told = flow.log_prob(x, c)
    assert not torch.allclose(told, flow.log_prob(x, c + 1))
    drawn, scored = flow.sample_and_log_prob((), c)
    torch.testing.assert_close(flow.log_prob(drawn, c), scored, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["zuko:MAF", "nflows:maf", "normflows:nsf"])
def test_equal_parameters(name):
    hidden = widths.solved(name, 3, 2, 20_000)
    assert abs(widths.counted(name, 3, 2, hidden) - 20_000) < 0.015 * 20_000


@pytest.mark.parametrize("name", ["zuko:NSF(bins=16)"])
def test_keywords_reach_the_library(name):
    more = widths.counted(name, 3, 2, (8, 8))
    assert more > widths.counted("zuko:NSF", 3, 2, (8, 8))
    assert registry.find(name).label == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zuko:NSFS", "zuko has no flow 'NSFS' here; known are MAF, NSF"),
        ("nflows:glow", "nflows has no flow 'glow' here"),
        ("zuko:NSF(bins=)", "cannot be read"),
        ("zuko:NSF(8)", "cannot be read"),
        ("zuko:NSF(colour=3)", "cannot be built"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(name, reason):
    with pytest.raises(ModelError, match=re.escape(reason)):
        registry.find(name)


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs nflows: pip install nflows"):
        registry.find("nflows:nsf(num_bins=7)")
