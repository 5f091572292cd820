"""Models of images in a comparison."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from command_line import refused, run

from baselines.models import registry
from baselines.models.builtin import MODELS, image_shape
from baselines.models.model import ModelError, centred

IMAGES = [name for name, model in MODELS.items() if model.images]


@pytest.mark.parametrize("features", [64, 784, 3072])
@pytest.mark.parametrize("name", IMAGES)
def test_sizes_of_images(name, features):
    flow = registry.preset(name, features, MODELS[name].depths[-1])
    assert flow.features == features
    assert not registry.takes_widths(name)


def test_shapes():
    assert image_shape(784) == (1, 28, 28)
    assert image_shape(3072) == (3, 32, 32)
    with pytest.raises(ModelError, match="63 columns are no square images"):
        image_shape(63)


def test_one_scale_for_all_pixels():
    rows = torch.randn(500, 9) * torch.arange(1.0, 10.0) + 4
    z = centred(rows).inverse(rows)
    assert z.mean(0).abs().max() < 1e-4
    assert z.square().mean().item() == pytest.approx(1.0, abs=1e-3)
    assert z.std(0)[8] > 5 * z.std(0)[0]


def test_a_table_is_refused(tmp_path, capsys):
    words = "glow is a model of images, and pinwheel is a table"
    line = "likelihood --data pinwheel --models glow --quick --out"
    refused(capsys, line, tmp_path, words=words)


def test_images_are_drawn_and_shown(tmp_path, capsys):
    line = "likelihood --data digits --models glow --steps 2 --quick --jobs 1 --out"
    assert run(line, tmp_path) == 0
    assert "bits/dim" in capsys.readouterr().out
    (arrays,) = [np.load(path) for path in tmp_path.glob("cells/*glow*/drawn.npz")]
    drawn = arrays["drawn"]
    assert drawn.shape == arrays["data"].shape == (16, 64)
    assert drawn.min() >= 0
    assert drawn.max() <= 16
    assert (tmp_path / "images_digits.png").stat().st_size > 1000
    assert "images that each model drew" in (tmp_path / "report.md").read_text()
