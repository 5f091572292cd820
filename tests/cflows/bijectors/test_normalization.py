from __future__ import annotations

import copy

import pytest
import torch

import cflows
from baselines import MAF
from cflows import ActNorm, BatchNorm, Chain, DiagonalScale, Flow, fit


def rows(n: int, dtype: torch.dtype, *batch: int) -> torch.Tensor:
    x = torch.randn(*batch, n, 3, dtype=torch.float64) * torch.tensor([0.1, 2.0, 30.0])
    return (x + torch.tensor([5.0, -1.0, 100.0])).to(dtype)


def initialised(layer: ActNorm) -> bool:
    return bool(layer.initialised)


@pytest.mark.parametrize("batch", [(), (4,), (2, 1)])
def test_act_norm_normalises_its_first_batch_only(batch, dtype, device):
    layer = ActNorm(3).to(device, dtype).train()
    x = rows(50, dtype, *batch).to(device)
    z, log_det = layer.inverse_and_log_det(x)
    near = 1e-9 if dtype == torch.float64 else 1e-4
    flat = z.detach().reshape(-1, 3)
    torch.testing.assert_close(flat.mean(0), torch.zeros_like(flat[0]), rtol=0, atol=near)
    torch.testing.assert_close(
        flat.std(0, correction=0), torch.ones_like(flat[0]), rtol=near, atol=0
    )
    expected = -x.reshape(-1, 3).std(0, correction=0).log().sum()
    torch.testing.assert_close(log_det.detach(), expected.expand(*batch, 50))
    before = copy.deepcopy(layer.state_dict())
    layer.inverse(x + 7)
    layer.eval().inverse(x - 7)
    layer.train().forward(x)
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_act_norm_is_the_identity_until_then(dtype):
    layer = ActNorm(3).to(dtype)
    x = rows(50, dtype)
    for mode in (True, False):
        layer.train(mode)
        torch.testing.assert_close(layer.forward_and_log_det(x), (x, x.new_zeros(50)))
    torch.testing.assert_close(layer.inverse_and_log_det(x), (x, x.new_zeros(50)))
    assert not initialised(layer)


@pytest.mark.parametrize("few", [0, 1])
def test_a_batch_that_tells_no_spread_initialises_nothing(few, dtype):
    layer = ActNorm(3).to(dtype).train()
    x = rows(50, dtype)
    assert torch.equal(layer.inverse(x[:few]), x[:few])
    assert not initialised(layer)
    layer.inverse(x)
    assert initialised(layer)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_column_is_only_shifted(constant, dtype):
    layer = ActNorm(3).to(dtype).train()
    x = rows(50, dtype)
    x[:, 1] = constant
    z, log_det = layer.inverse_and_log_det(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    assert layer.log_scale[1].item() == 0
    assert z[:, 1].abs().max().item() <= 1e-6 * constant
    assert initialised(layer)


def test_a_column_below_the_normal_numbers_gives_no_infinity():
    layer = ActNorm(1).train()
    z, log_det = layer.inverse_and_log_det(torch.tensor([[1e-41], [3e-41]]))
    assert z.isfinite().all()
    assert log_det.isfinite().all()


def test_act_norm_of_channels(dtype):
    c, h, w = 2, 3, 4
    layer = ActNorm(c * h * w, shape=(c, h, w)).to(dtype).train()
    assert layer.shift.shape == layer.log_scale.shape == (c,)
    scale = torch.tensor([0.5, 4.0], dtype=dtype)[:, None, None]
    images = 3 + scale * torch.randn(20, c, h, w, dtype=dtype)
    z, log_det = layer.inverse_and_log_det(images.reshape(20, -1))
    z = z.detach().reshape(20, c, h, w)
    near = 1e-9 if dtype == torch.float64 else 1e-4
    for channel in z.unbind(1):
        assert channel.mean().item() == pytest.approx(0, abs=near)
        assert channel.std(correction=0).item() == pytest.approx(1, rel=near)
    spread = images.movedim(1, 0).reshape(c, -1).std(1, correction=0)
    torch.testing.assert_close(log_det.detach(), (-h * w * spread.log().sum()).expand(20))


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 1, 0), (-1, -3, 1)])
def test_a_shape_that_does_not_fit(shape):
    with pytest.raises(ValueError, match="must have 3 elements") as caught:
        ActNorm(3, shape=shape)
    assert "\n" not in str(caught.value)


def test_a_loaded_act_norm_does_not_initialise_again(tmp_path, dtype, device):
    flow = Flow(Chain(DiagonalScale(3), ActNorm(3))).to(device, dtype).train()
    x = rows(50, dtype).to(device)
    flow.log_prob(x)
    flow.save(tmp_path / "flow.pt")
    again = cflows.load(tmp_path / "flow.pt").to(device).train()
    fresh = Flow(Chain(DiagonalScale(3), ActNorm(3))).to(device, dtype).train()
    fresh.load_state_dict(flow.state_dict())
    for twin in (again, fresh, copy.deepcopy(flow)):
        twin.log_prob(3 * x + 1)
        for key, value in flow.state_dict().items():
            assert torch.equal(twin.state_dict()[key], value), key


def test_a_state_from_before_starts_anew(dtype):
    layer = ActNorm(3).to(dtype).train()
    empty = copy.deepcopy(layer.state_dict())
    layer.inverse(rows(50, dtype))
    layer.load_state_dict(empty)
    assert not initialised(layer)
    z = layer.inverse(rows(50, dtype) + 1000)
    assert z.detach().mean(0).abs().max() < 1e-3
    assert initialised(layer)


def test_an_uninitialised_flow_is_saved_as_such(tmp_path):
    Flow(ActNorm(3)).save(tmp_path / "flow.pt")
    again = cflows.load(tmp_path / "flow.pt").train()
    assert not initialised(again.bijector)
    again.log_prob(rows(50, torch.float32))
    assert initialised(again.bijector)


def test_the_device_is_asked_once(monkeypatch):
    layer = ActNorm(3).train()
    x = rows(50, torch.float32)
    layer.inverse(x)

    def asked(self):
        raise AssertionError("a host synchronisation")

    monkeypatch.setattr(torch.Tensor, "__bool__", asked)
    layer.inverse(x)


def test_act_norm_between_layers_trains():
    x = rows(600, torch.float32)
    core = MAF(3, layers=2, hidden=(16,)).bijector.parts
    flow = Flow(Chain(*(part for layer in core for part in (layer, ActNorm(3)))))
    before = flow.eval().log_prob(x).mean().item()
    fit(flow, x, x[:200], steps=40, learning_rate=1e-2, progress=False)
    assert all(initialised(part) for part in flow.modules() if isinstance(part, ActNorm))
    independent = -(x.std(0).log() + 0.5 * torch.log(torch.tensor(2 * torch.pi * torch.e))).sum()
    after = flow.log_prob(x).mean().item()
    assert after > before + 100
    assert after == pytest.approx(independent.item(), abs=0.2)


@pytest.mark.parametrize("moving", [False, True])
def test_batch_norm_has_an_inverse_whichever_comes_first(moving, dtype):
    z = rows(20, dtype)
    layer = BatchNorm(3, moving=moving).to(dtype)
    for mode in (True, False):
        x, log_det = layer.train(mode).forward_and_log_det(z)
        # No batch was seen: the averages are zero mean and unit variance.
        torch.testing.assert_close(x, z * (1 + layer.eps) ** 0.5)
        assert log_det.isfinite().all()
    back, log_det_back = layer.eval().inverse_and_log_det(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_det_back, -log_det)


@pytest.mark.parametrize("moving", [False, True])
def test_batch_norm_in_training_and_evaluation_agree_on_stationary_data(moving):
    flow = Flow(BatchNorm(3, moving=moving, momentum=0.98)).double().train()
    with torch.no_grad():
        for _ in range(300):
            flow.log_prob(rows(500, torch.float64))
        x = rows(5000, torch.float64)
        training = flow.log_prob(x)
        evaluation = flow.eval().log_prob(x)
        assert (training.mean() - evaluation.mean()).abs() < 1e-2
        assert (training - evaluation).abs().mean() < 0.1
        z, log_det = flow.bijector.inverse_and_log_det(x)
        back, log_det_back = flow.bijector.forward_and_log_det(z)
        torch.testing.assert_close(back, x)
        torch.testing.assert_close(log_det_back, -log_det)


def test_batch_norm_of_a_small_batch_is_finite(dtype):
    layer = BatchNorm(3).to(dtype).train()
    z, log_det = layer.inverse_and_log_det(rows(1, dtype))
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    assert layer.eval().forward(z).isfinite().all()


def test_batch_norm_forward_uses_the_averages_in_training_too(dtype):
    layer = BatchNorm(3).to(dtype).train()
    layer.inverse(rows(50, dtype))
    z = torch.randn(4, 3, dtype=dtype)
    alone = torch.cat([layer.forward(row[None]) for row in z])
    torch.testing.assert_close(layer.forward(z), alone)
    torch.testing.assert_close(layer.eval().forward(z), alone)


def test_batch_norm_of_no_rows_leaves_the_averages(dtype):
    layer = BatchNorm(3).to(dtype).train()
    layer.inverse(rows(20, dtype))
    before = copy.deepcopy(layer.state_dict())
    z, log_det = layer.inverse_and_log_det(rows(0, dtype))
    assert z.shape == (0, 3)
    assert log_det.shape == (0,)
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_batch_norm_keeps_its_momentum_in_double():
    layer = BatchNorm(1, momentum=0.9).double().train()
    layer.inverse(torch.zeros(2, 1, dtype=torch.float64))
    layer.inverse(torch.ones(2, 1, dtype=torch.float64))
    assert layer.mean.item() == pytest.approx(0.1, rel=1e-14)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_initialises_nothing(bad, dtype):
    layer = ActNorm(3).to(dtype).train()
    x = rows(10, dtype)
    layer.inverse(torch.cat([x, torch.full((1, 3), bad, dtype=dtype)]))
    assert not initialised(layer)
    z = layer.inverse(x)
    assert initialised(layer)
    assert bool(z.isfinite().all())
