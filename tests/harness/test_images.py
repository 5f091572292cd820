"""Images: dequantisation and bits per dimension, digits, patches, idx files, CIFAR-10, pictures."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from baselines.harness.data import (
    DataError,
    cifar,
    entry,
    fetching,
    load,
    mnist,
    pictures,
    sklearn_images,
)
from baselines.harness.data.download import Archive
from baselines.harness.data.fetching import fetch
from baselines.harness.data.pixels import Pixels
from baselines.harness.experiment import cells
from baselines.harness.experiment import run as runner

RNG = np.random.default_rng(5)


# Dequantisation -----------------------------------------------------------------------------------


def test_bits_of_two_pixels_by_hand():
    """z = (0, log 3), α = 1/4, four levels, log p(z) = -3 nats: all terms written out.

    σ(0) = 1/2, σ(log 3) = 3/4; dz/dx = (1/2) / (1/4) = 2 and (1/2) / (3/16) = 8/3, together 16/3.
    log p(x) = -3 + log(16/3); bits = log2 4 - log p(x) / (2 log 2).
    """
    rows = np.array([[0.0, math.log(3.0)]])
    found = Pixels(levels=4, alpha=0.25).bits_per_dim(np.array([-3.0]), rows)
    assert found[0] == pytest.approx(2.9565238117, abs=1e-10)


def test_bits_of_uniform_pixels_are_those_of_their_levels():
    """Noise over 8 levels: the exact density of z gives 3 bits, row by row."""
    pixels = Pixels(levels=8, alpha=0.05)
    rows = pixels.rows(RNG.integers(8, size=(50, 6)), RNG)
    s = 1 / (1 + np.exp(-rows.astype(np.float64)))
    log_prob = np.log(s * (1 - s) / (1 - 2 * 0.05)).sum(1)
    np.testing.assert_allclose(pixels.bits_per_dim(log_prob, rows), 3.0, rtol=1e-12)


def test_rows_are_the_logit_of_noisy_pixels(monkeypatch):
    whole = RNG.integers(256, size=(400, 5))
    pixels = Pixels(levels=256, alpha=1e-6)
    monkeypatch.setattr("baselines.harness.data.pixels.CHUNK", 35)  # seven rows at a time
    rows = pixels.rows(whole, np.random.default_rng(1))
    assert rows.dtype == np.float32
    x = (whole + np.random.default_rng(1).random(whole.shape)) / 256
    y = 1e-6 + (1 - 2e-6) * x
    np.testing.assert_allclose(rows, np.log(y / (1 - y)), rtol=2e-7, atol=1e-6)
    assert np.array_equal(pixels.pixels(rows), whole)
    assert np.array_equal(pixels.pixels(np.array([[-1e9, 1e9]])), [[0, 255]])


def test_bits_do_not_overflow_at_the_ends():
    rows = np.array([[800.0, -800.0]])
    assert np.isfinite(Pixels().bits_per_dim(np.array([-1600.0]), rows)).all()


# What scikit-learn ships --------------------------------------------------------------------------


def test_digits():
    data = load("digits")
    assert data.features == 64
    assert data.pixels == Pixels(17, 1e-6)
    parts = [data.pixels.pixels(part) for part in (data.train, data.validation, data.test)]
    from sklearn.datasets import load_digits

    assert sorted(map(tuple, np.concatenate(parts))) == sorted(map(tuple, load_digits().data))
    assert load("digits", seed=1).checksum != data.checksum == load("digits").checksum
    assert not np.array_equal(parts[2], load_digits().data[: len(parts[2])])


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"digits needs scikit-learn; .*pip install"):
        load("digits")


def test_patches_are_8x8_places_of_the_photographs():
    data = load("patches")
    assert [len(data.train), data.features, len(data.test)] == [60_000, 63, 1060]
    from sklearn.datasets import load_sample_images

    rgb = np.stack(load_sample_images().images).astype(np.float64)
    grey = np.floor(rgb @ (0.299, 0.587, 0.114) + 0.5 + 1e-9)
    places = sklearn_images.positions("test", 8)
    for row, (photo, top, left) in list(zip(data.test, places, strict=True))[::50]:
        clean = grey[photo, top : top + 8, left : left + 8].ravel() / 256
        noise = 256 * (np.append(row, -row.sum()) - (clean - clean.mean()))
        assert np.ptp(noise) < 1


def test_no_pixel_is_in_two_splits_of_patches():
    columns = {}
    for split in ("train", "validation", "test"):
        left = np.unique(sklearn_images.positions(split, 8)[:, 2])
        columns[split] = {int(c) for start in left for c in range(start, start + 8)}
    assert not columns["train"] & columns["validation"]
    assert not columns["train"] & columns["test"]
    assert not columns["validation"] & columns["test"]


def test_a_comparison_reports_bits_beside_nats(tmp_path, capsys):
    """results.csv, the terminal's line and the report, for digits and the Gaussian alone."""
    plan = runner.Plan("likelihood", ["digits", "pinwheel"], [], [0], None, 1, None, True, "cpu",
                       1, tmp_path, "test")  # fmt: skip
    assert runner.execute(plan) == 0
    assert "bits/dim" in capsys.readouterr().out
    from baselines.harness.report import contents

    bits = {row.dataset: row.bits_per_dim for row in contents.rows(tmp_path)
            if row.model == "gaussian"}  # fmt: skip
    assert bits["pinwheel"] is None
    data = load("digits")
    cell = next(c for c in runner.plan_cells(plan, runner._load(plan.data)) if c.data == "digits")
    log_prob = np.load(cell.folder(tmp_path) / "test_log_prob.npy")
    assert bits["digits"] == pytest.approx(
        data.pixels.bits_per_dim(log_prob, data.test).mean(), abs=1e-4
    )
    text = (tmp_path / "report.md").read_text()
    assert text.count("bits per dimension") == 1
    assert cells.finished(cell, tmp_path)["status"] == "ok"


# idx files ----------------------------------------------------------------------------------------


def idx_bytes(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A folder of 30 and 6 images of 3 x 2, one file compressed and the other not."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    train, test = (RNG.integers(256, size=(n, 3, 2)).astype(np.uint8) for n in (30, 6))
    (folder / f"{mnist.FILES['train']}.gz").write_bytes(gzip.compress(idx_bytes(train)))
    (folder / mnist.FILES["test"]).write_bytes(idx_bytes(test))
    monkeypatch.setenv("CFLOWS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no cache"))
    return folder, train.reshape(30, 6), test.reshape(6, 6)


def test_mnist_by_name_and_by_folder(folders):
    folder, train, test = folders
    for data in (load("mnist"), load(folder)):
        back = [data.pixels.pixels(part) for part in (data.train, data.validation, data.test)]
        assert [len(part) for part in back] == [25, 5, 6]
        assert np.array_equal(back[2], test)
        assert sorted(map(tuple, np.concatenate(back[:2]))) == sorted(map(tuple, train))
    assert load("mnist").pixels.alpha == 1e-6
    assert load("mnist").columns[:3] == ("p0_0", "p0_1", "p1_0")
    with pytest.raises(
        DataError, match=r"fashion_mnist is not here: run cflows data fetch fashion"
    ):
        load("fashion_mnist")


def test_mnist_fetched_from_a_server_is_verified_and_loaded(folders, server, monkeypatch, tmp_path):
    folder, _, _ = folders
    content = {f"{stem}.gz": gzip.compress(mnist.file_in(folder, stem).read_bytes())
               for stem in mnist.FILES.values()}  # fmt: skip
    content[f"{mnist.FILES['train']}.gz"] = (folder / f"{mnist.FILES['train']}.gz").read_bytes()
    expected = load("mnist").checksum
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CFLOWS_DATA")

    def announce(name, md5=None):
        found = hashlib.md5(content[name], usedforsecurity=False).hexdigest()
        return Archive(server.url.replace("data.tar.gz", name), md5 or found, 1)

    real = fetching.download

    def one_after_the_other(url, place, **settings):
        server.content = content[place.name]
        return real(url, place, **settings)

    monkeypatch.setattr(fetching, "download", one_after_the_other)
    wrong = [announce(name, "0" * 32) for name in content]
    monkeypatch.setitem(mnist.ARCHIVES, "fashion_mnist", wrong)
    with pytest.raises(DataError, match="not opened and has been removed"):
        fetch(["fashion_mnist"])
    assert not list((tmp_path / "cache").rglob("*.gz*"))
    monkeypatch.setitem(mnist.ARCHIVES, "mnist", [announce(name) for name in content])
    said = []
    for _ in range(2):
        fetch(["mnist"], say=said.append)
    assert len(server.asked) == 3
    assert "mnist is here: " in said[-1]
    assert load("mnist").checksum == expected
    assert str(tmp_path / "cache") in entry("mnist").here()


def test_mnist_taken_from_a_folder(folders, monkeypatch, tmp_path):
    folder, _, _ = folders
    expected = load("mnist").checksum
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CFLOWS_DATA")
    (tmp_path / "empty").mkdir()
    for given, says in ((tmp_path / "empty", "holds no train-images"),
                        (tmp_path / "none", "file not found")):  # fmt: skip
        with pytest.raises(DataError, match=says):
            fetch(["mnist"], given)
    cached = tmp_path / "cache" / "cflows" / "data" / "mnist"
    for given in (folder, folder.parent):
        fetch(["mnist"], given, say=list)
        assert load("mnist").checksum == expected
    (folder / f"{mnist.FILES['test']}.gz").write_bytes(b"damaged")
    (folder / mnist.FILES["test"]).unlink()
    with pytest.raises(DataError, match="damaged, or cut off"):
        fetch(["mnist"], folder)
    assert load("mnist").checksum == expected
    assert sorted(p.name for p in cached.iterdir()) == sorted(
        [f"{mnist.FILES['train']}.gz", mnist.FILES["test"]]
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b[:-1], "holds 35 values, its header says 36"),
        (lambda b: b + b"x", "holds 37 values, its header says 36"),
        (lambda b: b"\0\0\x0d" + b[3:], "not an idx file"),
        (lambda b: b[:9], "not an idx file"),
        (lambda b: b"", "not an idx file"),
        (lambda b: gzip.compress(b)[:-5], "damaged, or cut off"),
        (lambda b: gzip.compress(b)[:12] + b"\xff" * 30, "damaged, or cut off"),
    ],
)
def test_damaged_idx_files(folders, damage, says):
    place = folders[0] / mnist.FILES["test"]
    content = damage(place.read_bytes())
    if says.startswith("damaged"):
        place.unlink()
        place = place.with_name(place.name + ".gz")
    place.write_bytes(content)
    with pytest.raises(DataError, match=says):
        load("mnist")


@pytest.mark.skipif(
    not (Path(os.environ.get("CFLOWS_DATA", "none")) / "mnist").is_dir(), reason="MNIST is not here"
)
def test_the_real_mnist():
    found = mnist.read_idx(Path(os.environ["CFLOWS_DATA"]) / "mnist" / f"{mnist.FILES['test']}.gz")
    assert found.shape == (10_000, 28, 28)
    assert found.mean() == pytest.approx(33.79, abs=0.01)


# CIFAR-10 -----------------------------------------------------------------------------------------


def batch(n, protocol=2):
    whole = RNG.integers(256, size=(n, 3072)).astype(np.uint8)
    return whole, pickle.dumps({b"data": whole, b"labels": [0] * n, b"batch_label": b"x"}, protocol)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The archive with two images a batch, and the cache in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CFLOWS_DATA", str(tmp_path / "data"))
    place = tmp_path / "data" / "cifar10" / cifar.ARCHIVE
    place.parent.mkdir(parents=True)
    wholes = {}
    with tarfile.open(place, "w:gz") as file:
        for name in (*cifar.TRAIN, *cifar.TEST):
            wholes[name], content = batch(2)
            member = tarfile.TarInfo(f"{cifar.FOLDER}/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return place, wholes


def test_cifar_is_converted_once(archive):
    place, wholes = archive
    data = load("cifar10")
    back = [data.pixels.pixels(part) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in back] == [9, 1, 2]
    assert np.array_equal(back[2], wholes["test_batch"])
    assert data.pixels.alpha == 0.05
    assert load(place).checksum == data.checksum
    place.unlink()
    assert load("cifar10").checksum == data.checksum
    cifar.converted().unlink()
    with pytest.raises(DataError, match="cifar10 is not here: run cflows data fetch cifar10"):
        load("cifar10")


def test_cifar_from_its_folder(archive):
    place, _ = archive
    whole = load("cifar10").checksum
    with tarfile.open(place) as file:
        file.extractall(place.parent, filter="data")
    assert load(place.parent / cifar.FOLDER).checksum == whole


def test_cifar_fetched_from_a_server_or_given(archive, server, monkeypatch, tmp_path):
    place, _ = archive
    expected = load("cifar10").checksum
    assert "converted" in entry("cifar10").here()
    cifar.converted().unlink()
    assert "(CFLOWS_DATA), converted when it is loaded" in entry("cifar10").here()
    monkeypatch.delenv("CFLOWS_DATA")
    assert entry("cifar10").here() == ""
    server.content = place.read_bytes()
    md5 = hashlib.md5(server.content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(cifar, "DOWNLOAD", Archive(server.url, md5, 1))
    for _ in range(2):
        fetch(["cifar10"], say=list)
    assert len(server.asked) == 1
    assert load("cifar10").checksum == expected
    assert [p.name for p in (tmp_path / "cache" / "cflows").iterdir()] == ["data"]
    for given in (place, place.parent):
        cifar.converted().unlink()
        fetch(["cifar10"], given, say=list)
        assert load("cifar10").checksum == expected
    place.write_bytes(server.content + b"x")
    with pytest.raises(DataError, match=r"md5 .*not opened"):
        fetch(["cifar10"], place)
    with pytest.raises(DataError, match=r"holds neither cifar-10-batches-py nor"):
        fetch(["cifar10"], tmp_path)


class Harm:
    """A pickle of this writes a file where it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_execute_code_does_not(tmp_path, protocol):
    harm = pickle.dumps({b"data": Harm(tmp_path / "harm")}, protocol)
    with pytest.raises(DataError, match=r"asks for .*open, which images do not need"):
        cifar.read_batch(harm, "batch")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": b"x" * 3072}),
        pickle.dumps({b"data": np.zeros((2, 3072))}, 2),
        pickle.dumps({b"data": np.zeros((2, 30), np.uint8)}, 2),
        pickle.dumps({b"data": np.asfortranarray(np.zeros((2, 3072), np.uint8))}, 2),
        batch(2)[1][:-900],
    ],
)
def test_batches_that_are_none(content):
    with pytest.raises(DataError, match=r"^batch: .*(damaged|holds|asks)") as caught:
        cifar.read_batch(content, "batch")
    assert "\n" not in str(caught.value)


def as_python_2_wrote(whole):
    """The opcodes of the real batches, whose strings are bytes."""
    n, d = whole.shape
    return (
        b"(dS'data'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        + f"(I1\n(I{n}\nI{d}\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR".encode()
        + b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nT"
        + struct.pack("<i", whole.size)
        + whole.tobytes()
        + b"tbsS'labels'\n(lI0\nas."
    )


def test_every_spelling_of_a_batch_is_read():
    whole = RNG.integers(256, size=(2, 3072)).astype(np.uint8)
    written = [pickle.dumps({b"data": whole}, protocol) for protocol in (0, 1, 2, 3, 4)]
    for content in (as_python_2_wrote(whole), *written):
        assert np.array_equal(cifar.read_batch(content, "batch"), whole)


def test_archives_that_are_cut_off(archive):
    place, _ = archive
    place.write_bytes(place.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"(not a whole archive|lacks)"):
        load("cifar10")
    assert not cifar.converted().exists()


# Pictures -----------------------------------------------------------------------------------------


def test_a_picture_is_drawn_by_its_darkness(tmp_path):
    """Pixels of one, two and three parts of darkness, in a picture twice as wide as high."""
    shades = np.full((2, 4), 255, np.uint8)
    shades[0, 0], shades[1, 1], shades[1, 3] = 205, 155, 105
    Image.fromarray(shades).save(tmp_path / "p.png")
    data = load(tmp_path / "p.png")
    assert (data.kind, data.columns, data.name) == ("file", ("x", "y"), "p.png")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [
        50_000, 5_000, 10_000
    ]  # fmt: skip
    x, y = data.train.T
    column, row = np.floor((x + 4) / 2).astype(int), np.floor((2 - y) / 2).astype(int)
    counts = np.zeros((2, 4))
    np.add.at(counts, (row, column), 1 / 50_000)
    expected = np.array([[1, 0, 0, 0], [0, 2, 0, 3]]) / 6
    np.testing.assert_allclose(counts, expected, atol=0.01)
    inside = data.train[(row == 1) & (column == 3)] - (2, -2)
    np.testing.assert_allclose(inside.mean(0), [1, 1], atol=0.03)
    np.testing.assert_allclose(inside.var(0), 4 / 12, rtol=0.03)
    bright = pictures.read(tmp_path / "p.png", ink="bright").train
    assert not ((bright[:, 0] > 2) & (bright[:, 1] < 0)).any()
    assert load(tmp_path / "p.png").checksum == data.checksum


def test_what_is_transparent_is_paper(tmp_path):
    shades = np.zeros((1, 2, 4), np.uint8)
    shades[0, 0, 3] = 255
    Image.fromarray(shades).save(tmp_path / "p.png")
    assert (load(tmp_path / "p.png").train[:, 0] < 0).all()


def test_sixteen_bits_are_not_clipped(tmp_path):
    """Weights 3 : 1 : 0, of which eight bits would know one alone."""
    Image.fromarray(np.array([[20_000, 40_000, 50_000]], np.uint16)).save(tmp_path / "p.png")
    column = np.floor((load(tmp_path / "p.png").train[:, 0] + 4) / (8 / 3))
    np.testing.assert_allclose(
        np.bincount(column.astype(int), minlength=3) / 50_000, [0.75, 0.25, 0], atol=0.01
    )


def test_pictures_refused(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (3, 3), 7).save(tmp_path / "plain.png")
    Image.fromarray(np.array([[np.nan, 1]], np.float32)).save(tmp_path / "nan.tif")
    for name, says in (
        ("nan.tif", "pixels that are not finite"),
        ("text.png", "no image that pillow can read"),
        ("plain.png", "of one shade"),
        ("missing.jpg", "file not found"),
    ):
        with pytest.raises(DataError, match=says) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"needs pillow; install it with: pip install"):
        load(tmp_path / "plain.png")
