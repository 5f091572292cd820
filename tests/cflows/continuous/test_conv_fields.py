"""Fields of images, and FFJORD at several scales."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo import perturbed

from cflows import (
    ConvField,
    FixedGrid,
    Flow,
    FlowMatching,
    ImageFFJORD,
    ODEBijector,
    UNetField,
    fit,
    load,
    value_and_divergence,
)
from cflows.continuous.divergence import draw_probes
from cflows.continuous.layers import LAYERS

SHAPES = [(1, 4, 4), (3, 5, 7)]


def fields(shape, **settings):
    return [
        *(ConvField(shape, hidden=(4, 3), layer=layer, **settings) for layer in sorted(LAYERS)),
        UNetField(shape, channels=6, levels=2, **settings),
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_times_and_contexts(shape):
    for field in fields(shape, context_features=2):
        field = perturbed(field)
        x, context = torch.randn(5, field.features).double(), torch.randn(5, 2).double()
        t = torch.tensor(0.3).double()
        velocity = field(t, x, context)
        assert velocity.shape == x.shape
        torch.testing.assert_close(field(t, x[:1], context[:1]), velocity[:1])
        assert not torch.allclose(field(t, x, context + 1), velocity)
        if field.time_by_row:
            times = torch.linspace(0, 1, 5).double()
            torch.testing.assert_close(
                field(times, x, context)[2:3], field(times[2], x[2:3], context[2:3])
            )
        else:
            with pytest.raises(ValueError, match="one kernel a call"):
                field(torch.rand(5).double(), x, context)


@pytest.mark.parametrize("shape", SHAPES)
def test_fields_start_without_a_dependence_on_the_image(shape):
    for field in fields(shape):
        x = torch.randn(3, field.features)
        velocity = field(torch.tensor(0.5), x)
        torch.testing.assert_close(velocity, velocity[:1].expand(3, -1))


def test_a_silu_learns_its_slope_and_the_channels_are_those_of_an_image():
    field = perturbed(ConvField((2, 3, 3), hidden=(4,), activation="silu", layer="ignore"))
    x = torch.randn(2, 18).double()
    (first, last), (silu,) = field.layers, field.activations
    h = nn.functional.conv2d(
        x.view(2, 2, 3, 3), first.weight.view(4, 2, 3, 3), first.bias, padding=1
    )
    h = h * torch.sigmoid(silu.beta * h)
    h = nn.functional.conv2d(h, last.weight.view(2, 4, 3, 3), last.bias, padding=1)
    torch.testing.assert_close(field(torch.tensor(0.0).double(), x), h.flatten(1))


@pytest.mark.parametrize("field", ["conv", "unet"])
def test_the_trace_and_its_estimate(field):
    kind = ConvField((1, 4, 4), hidden=(6,)) if field == "conv" else UNetField((1, 4, 4), levels=2)
    kind = perturbed(kind)
    t, x = torch.tensor(0.4).double(), torch.randn(3, 16).double()
    trace = value_and_divergence(kind, t, x)[1]
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: kind(t, row[None])[0]))(x)
    torch.testing.assert_close(trace, jacobian.diagonal(dim1=1, dim2=2).sum(-1))
    torch.manual_seed(0)
    found = torch.stack(
        [value_and_divergence(kind, t, x, None, draw_probes(x))[1].detach() for _ in range(200)]
    )
    error = found.std(0) / 200**0.5
    assert ((found.mean(0) - trace).abs() < 4 * error).all()


@pytest.mark.parametrize(("scales", "size"), [(1, 4), (2, 4), (3, 8)])
def test_ffjord_at_several_scales(scales, size, tmp_path):
    flow = ImageFFJORD(
        (1, size, size),
        scales=scales,
        settings={"hidden": (4,)},
        evaluation_solver=FixedGrid("rk4", 12),
        context_features=2,
    )
    flow = perturbed(flow, torch.float32)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter *= 0.5
    x, context = torch.randn(4, size * size), torch.randn(4, 2)
    blocks = [part for part in flow.modules() if isinstance(part, ODEBijector)]
    assert len(blocks) == 2 * scales - 1
    z = flow.bijector.inverse(x, context)
    assert (flow.bijector(z, context) - x).abs().max() < 1e-4
    log_prob = flow.log_prob(x, context)
    torch.testing.assert_close(flow.log_prob(x[:1], context[:1]), log_prob[:1], atol=1e-4, rtol=0)
    _, log_det = flow.bijector.inverse_and_log_det(x[0], context[0])
    jacobian = torch.func.jacrev(lambda row: flow.bijector.inverse(row, context[0]))(x[0])
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1], atol=1e-3, rtol=1e-4)
    flow.save(tmp_path / "images.flow")
    assert torch.equal(load(tmp_path / "images.flow").log_prob(x, context), log_prob)


def test_many_pixels_have_an_estimate_and_the_exact_trace_on_request():
    flow = perturbed(
        ImageFFJORD((1, 12, 12), settings={"hidden": (3,)}, evaluation_solver=FixedGrid("rk4", 4)),
        torch.float32,
    )
    x = torch.randn(2, 144)
    torch.manual_seed(0)
    with torch.no_grad():
        found = torch.stack([flow.log_prob(x) for _ in range(60)])
        assert found.std(0).min() > 0
        with flow.using(divergence="exact"):
            exact = flow.log_prob(x)
    assert ((found.mean(0) - exact).abs() < 4 * found.std(0) / 60**0.5 + 1e-3).all()


def test_a_u_net_learns_images_by_matching():
    """Images of one bright row each: means, and rows that are alike within."""
    torch.manual_seed(0)
    which = torch.randint(4, (2000,))
    x = (nn.functional.one_hot(which, 4)[:, :, None] * 4.0 - 1).expand(-1, 4, 4)
    x = (x + 0.3 * torch.randn(2000, 4, 4)).flatten(1)
    flow = ImageFFJORD(
        (1, 4, 4),
        field="unet",
        settings={"channels": 8, "levels": 2},
        evaluation_solver=FixedGrid("dopri5", 12),
    )
    fit(flow, x, objective=FlowMatching(), steps=100, batch_size=128, progress=False)
    draws = flow.eval().sample(200).view(-1, 4, 4)
    bright = draws.mean(2).sort(dim=1).values
    torch.testing.assert_close(
        bright.mean(0), torch.tensor([-1.0, -1.0, -1.0, 3.0]), atol=0.5, rtol=0
    )


def test_a_graph_of_half_precision_keeps_the_images_dtype():
    flow = Flow(ODEBijector(UNetField((1, 4, 4), channels=4, levels=2), bfloat16=True))
    loss = -flow.log_prob(torch.randn(3, 16)).mean()
    loss.backward()
    assert loss.dtype == torch.float32


def test_what_does_not_fit_is_refused():
    for build in (ConvField, UNetField, ImageFFJORD):
        with pytest.raises(ValueError, match=r"shape must be \(C, H, W\)"):
            build((4, 4))
    with pytest.raises(ValueError, match="at least one width"):
        ConvField((1, 4, 4), hidden=())
    with pytest.raises(ValueError, match="layer must be one of"):
        ConvField((1, 4, 4), layer="magic")
    with pytest.raises(ValueError, match=r"at least 2\^\(levels - 1\) wide"):
        UNetField((1, 4, 2), levels=3)
    with pytest.raises(ValueError, match="scales and blocks"):
        ImageFFJORD((1, 4, 4), scales=0)
    with pytest.raises(ValueError, match="multiples of factor"):
        ImageFFJORD((1, 5, 4), scales=2)
    with pytest.raises(ValueError, match="field must be one of conv, unet"):
        ImageFFJORD((1, 4, 4), field="magic")
