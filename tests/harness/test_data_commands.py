"""``cflows data list | fetch | check`` and the sets they make, on an archive made here."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil

import command_line
import numpy as np
import pytest
import torch
from made_data import Payload, archive, frame_pickle, gas_frame
from scipy.stats import multivariate_normal

from baselines.harness import data
from baselines.harness.data import DataError, fetching, published, statistics, store, tabular
from baselines.harness.data.dataset import SPLITS
from baselines.harness.data.download import Archive

NAMES = ("power", "gas", "hepmass", "miniboone", "bsds300")


def csv(rows, names, end=""):
    lines = [",".join(names), *(",".join(map(repr, row)) + end for row in rows.tolist())]
    return ("\n".join(lines) + "\n").encode()


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """The archive's files, small; the tests know what they were made of."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.RandomState(0)
    np.save(folder / "power.npy", rng.normal(size=(300, 8)))
    np.save(folder / "miniboone.npy", rng.normal(size=(250, 4)))
    signal = np.hstack([np.arange(120)[:, None] % 2, rng.normal(size=(120, 3))])
    with h5py.File(folder / "b.hdf5", "w") as file:
        for split, n in (("train", 90), ("validation", 30), ("test", 40)):
            file[split] = rng.normal(size=(n, 5)).astype(np.float32)
    names = ["# label", "f0", "f1", "f2"]
    extra = np.hstack([signal[:60], np.ones((60, 1))])
    return {
        "data/power/data.npy": (folder / "power.npy").read_bytes(),
        "data/gas/ethylene_CO.pickle": frame_pickle(*gas_frame(), "old"),
        "data/hepmass/1000_train.csv": csv(signal, names, end=","),
        "data/hepmass/1000_test.csv": csv(extra, [*names, "extra"]),
        "data/miniboone/data.npy": (folder / "miniboone.npy").read_bytes(),
        "data/BSDS300/BSDS300.hdf5": (folder / "b.hdf5").read_bytes(),
        "data/mnist/other": b"not wanted",
    }


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CFLOWS_DATA", raising=False)
    return tmp_path / "cache" / "cflows"


@pytest.fixture
def made(members, cache, tmp_path, monkeypatch):
    """The archive as a file, whose checksum is the one that is looked for."""
    return announce(archive(tmp_path / "made.tar.gz", members), monkeypatch)


def announce(path, monkeypatch, url="http://127.0.0.1/none"):
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(published, "ARCHIVE", Archive(url, md5, 1))
    return path


def run(*arguments: object) -> int:
    return command_line.run("data", *arguments)


def refused(capsys, *arguments: object, words: str | tuple[str, ...]) -> None:
    capsys.readouterr()
    command_line.refused(capsys, "data", *arguments, words=words)


def unpack(members, folder):
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_all_five_from_a_server(members, made, server, monkeypatch, capsys, cache):
    server.content = made.read_bytes()
    announce(made, monkeypatch, server.url)
    server.stop_after = [len(server.content) // 2]
    real = fetching.download
    monkeypatch.setattr(fetching, "download", lambda *a, **k: real(*a, **{**k, "pause": 0.001}))
    assert run("fetch", *NAMES) == 0
    assert len(server.asked) == 2
    assert sorted(path.name for path in (cache / "data").iterdir()) == sorted(NAMES)
    assert {path.name for path in cache.iterdir()} == {"data", "zenodo-1161203-data.tar.gz"}
    assert capsys.readouterr().out.count("is a subset here: its figures are not comparable") == 5
    assert run("fetch", "power") == 0
    assert len(server.asked) == 2
    assert "power is here: " in capsys.readouterr().out
    shutil.rmtree(cache / "data" / "gas")
    assert run("fetch", "gas") == 0  # from the archive that was kept
    assert len(server.asked) == 2


def test_the_same_rows_from_an_archive_a_folder_and_cflows_data(
    members, made, tmp_path, monkeypatch
):
    folder = unpack(members, tmp_path / "unpacked")
    assert run("fetch", *NAMES, "--from", made) == 0
    first = {name: data.load(name) for name in NAMES}
    for given in (folder, folder / "data"):
        shutil.rmtree(store.folder_of("power").parent)
        assert run("fetch", *NAMES, "--from", given) == 0
        assert {name: data.load(name).checksum for name in NAMES} == {
            name: rows.checksum for name, rows in first.items()
        }
    shutil.rmtree(store.folder_of("power").parent)
    monkeypatch.setenv("CFLOWS_DATA", str(folder))
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    for name in NAMES:
        rows = data.load(name)
        assert not rows.known_checksum
        assert rows.checksum == first[name].checksum
        assert rows.columns == first[name].columns
        assert rows.subset
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*")) == before


def test_stored_rows_are_those_of_the_preprocessing_mapped(members, made, tmp_path):
    unpack(members, tmp_path)
    run("fetch", *NAMES, "--from", made)
    raw = np.load(tmp_path / "data/power/data.npy")
    rows = data.load("power")
    parts = rows.train, rows.validation, rows.test
    for part, expected in zip(parts, tabular.power(raw)[:3], strict=True):
        assert isinstance(part, np.memmap)
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, expected.astype(np.float32))
        assert torch.from_numpy(part).data_ptr() == part.ctypes.data  # without a copy, or a warning
    assert data.load("gas").columns == ("b", "c", "n2", "m")
    assert data.load("hepmass").columns == ("f0", "f1", "f2")
    assert data.load("hepmass").sizes == (54, 6, 30)
    assert data.load("bsds300").sizes == (90, 30, 40)
    about = json.loads((store.folder_of("power") / "manifest.json").read_text())
    assert about["columns"] == list(rows.columns)
    for split in SPLITS:
        part, place = getattr(rows, split), store.folder_of("power") / f"{split}.npy"
        assert about["splits"][split]["rows"] == len(part)
        np.testing.assert_allclose(about["splits"][split]["means"], part.mean(0), atol=1e-6)
        digest = hashlib.sha256(place.read_bytes()).hexdigest()
        assert about["splits"][split]["sha256"] == digest


def test_writing_to_a_mapped_array_leaves_the_file(made):
    run("fetch", "power", "--from", made)
    data.load("power").train[:] = 0
    store.verify("power")


def test_a_set_of_the_published_sizes_is_no_subset(made, monkeypatch, capsys):
    table = published.PUBLISHED["power"]
    full = published.Published(**{**vars(table), "sizes": (243, 27, 30)})
    monkeypatch.setitem(published.PUBLISHED, "power", full)
    run("fetch", "power", "--from", made)
    assert data.load("power").note == ""
    capsys.readouterr()
    run("check", "power")
    text = capsys.readouterr().out
    assert "-7.74 on test, Papamakarios et al. 2017\n" in text
    assert "subset" not in text


def test_a_wrong_archive_is_not_opened_and_left(made, monkeypatch, capsys, cache):
    before = made.read_bytes()
    made.write_bytes(before + b"\0")
    monkeypatch.setattr("tarfile.open", lambda *a, **k: pytest.fail("opened"))
    refused(capsys, "fetch", "power", "--from", made, words=("md5", "not opened", "unpack it"))
    assert made.read_bytes() == before + b"\0"
    assert not cache.exists()


def test_a_wrong_download_is_not_opened(made, server, monkeypatch, capsys, cache):
    announce(made, monkeypatch, server.url)
    server.content = made.read_bytes()[:-1] + b"!"
    monkeypatch.setattr("tarfile.open", lambda *a, **k: pytest.fail("opened"))
    refused(capsys, "fetch", "power", words=("md5", "not opened", "run the same command again"))
    assert list(cache.iterdir()) == []


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_archives_that_would_do_harm(members, cache, tmp_path, monkeypatch, capsys):
    target = tmp_path / "harm"
    evil = {**members, "data/gas/ethylene_CO.pickle": pickle.dumps(Payload(target))}
    place = announce(archive(tmp_path / "e.tgz", evil), monkeypatch)
    refused(capsys, "fetch", "gas", "--from", place, words="it was not run")
    out = {"../../../harm": b"1", **members}
    place = announce(archive(tmp_path / "e.tgz", out), monkeypatch)
    refused(capsys, "fetch", "power", "--from", place, words="outside its folder")
    assert not target.exists()
    assert list(cache.iterdir()) in ([], [cache / "data"])
    assert not list(cache.rglob("*.npy"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fetch", "powr"], "did you mean power?"),
        (["fetch", "pinwheel"], "'pinwheel' cannot be fetched"),
        (["fetch"], "NAME"),
        (["fetch", "power", "--from", "nowhere.tar.gz"], "nowhere.tar.gz: file not found"),
        (["fetch", "power", "--from", "."], "lacks power/data.npy"),
        (["list", "gass"], "did you mean gas?"),
        (["check", "hepmas"], "did you mean hepmass?"),
        (["check", "power"], ("power is not here", "cflows data fetch power", "--from")),
        (["lst"], ("'lst'", "list")),
    ],
)
def test_bad_commands(arguments, words, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(capsys, *arguments, words=words)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("power/data.npy", b"\x93NUMPY junk", "no array of numbers"),
        ("hepmass/1000_train.csv", b"label,a\n1,x\n", "no table of numbers"),
        ("hepmass/1000_test.csv", b"label,a\n1,2\n", "test file has 2 columns"),
        ("BSDS300/BSDS300.hdf5", b"no such format", "BSDS300 cannot be read"),
        ("gas/ethylene_CO.pickle", b"no pickle", "no pickled frame"),
    ],
)
def test_damaged_files(file, content, words, members, cache, tmp_path, capsys):
    unpack(members, tmp_path)
    (tmp_path / "data" / file).write_bytes(content)
    name = file.split("/")[0].lower()
    refused(capsys, "fetch", name, "--from", tmp_path, words=words)
    assert not list(cache.rglob("*.npy"))


def test_hdf5_without_h5py(made, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(capsys, "fetch", "power", "bsds300", "--from", made, words="pip install 'cflows[data]'")


def test_damage_of_a_stored_set_is_found(made, capsys):
    run("fetch", "power", "--from", made)
    place = store.folder_of("power") / "test.npy"
    before = place.read_bytes()
    place.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert data.load("power").features == 6  # sizes alone are looked at
    refused(capsys, "check", "power", words=("test.npy has changed", "cflows data fetch power"))
    place.write_bytes(before[:-8])
    with pytest.raises(DataError, match=r"test\.npy cannot be used \(\d+ bytes, not"):
        data.load("power")
    (place.parent / "manifest.json").write_text("{")
    refused(capsys, "list", words="manifest.json is damaged")


def test_a_conversion_that_fails_leaves_the_earlier_set(made, monkeypatch, capsys):
    run("fetch", "power", "--from", made)
    before = data.load("power").checksum

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    refused(capsys, "fetch", "power", "--from", made, words="No space left")
    assert data.load("power").checksum == before
    assert [path.name for path in store.folder_of("power").parent.iterdir()] == ["power"]


def test_list_names_source_licence_and_place_and_loads_nothing(
    members, made, tmp_path, monkeypatch, capsys
):
    run("fetch", "gas", "--from", made)
    monkeypatch.setenv("CFLOWS_DATA", str(unpack(members, tmp_path / "d")))
    monkeypatch.setattr(published, "prepare", lambda *a: pytest.fail("loaded"))
    monkeypatch.setattr(data.toys, "toy", lambda *a: pytest.fail("drawn"))
    capsys.readouterr()
    assert run("list") == 0
    pages = capsys.readouterr().out.split("\n              here: ")
    assert len(pages) == len(data.names()) + 1
    text = "\n".join(pages)
    for name in data.names():
        entry = data.entry(name)
        assert all((entry.about, entry.source, entry.licence))
        assert f"\n{name:14}{entry.about}" in "\n" + text
    assert text.count("source: ") == text.count("licence: ") == len(data.names())
    assert run("list", *NAMES) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1,659,917 / 184,435 / 204,928 rows" in text
    assert "(CFLOWS_DATA), a subset (300 rows)" in text
    assert "(CFLOWS_DATA), a subset (160 rows)" in text
    assert "here: a subset (162 / 18 / 20 rows), in " in text


def test_an_entry_says_what_is_loaded(made):
    run("fetch", *NAMES, "--from", made)
    for name in ("moons", "patches4", *NAMES):
        entry, rows = data.entry(name), data.load(name)
        assert entry.name == rows.name
        if name not in NAMES:
            assert (entry.columns, entry.sizes) == (rows.features, rows.sizes)
            assert entry.here()


def test_check_prints_statistics_and_the_gaussian(made, capsys):
    run("fetch", "miniboone", "--from", made)
    capsys.readouterr()
    assert run("check", "miniboone", "moons") == 0
    text = capsys.readouterr().out
    rows = data.load("miniboone")
    gaussian = multivariate_normal(rows.train.mean(0), np.cov(rows.train.T, bias=True))
    for split in ("validation", "test"):
        log_prob = gaussian.logpdf(getattr(rows, split))
        error = 2 * log_prob.std() / len(log_prob) ** 0.5
        assert f"  {split:10} {log_prob.mean():10.3f} ± {error:.3f}\n" in text
    assert "-37.24 on test, Papamakarios et al. 2017, not comparable with a subset's" in text
    assert "miniboone is a subset here" in text
    assert f"checksum: {rows.checksum}; all files of " in text
    least = min(rows.train[:, 1])
    assert f"{least:10.4g}" in text
    assert "moons: 2 columns" in text


def test_statistics_of_several_pieces(monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK", 7)
    rows = np.random.RandomState(0).normal(3, 2, (40, 3))
    mean, std = statistics.moments(rows)
    np.testing.assert_allclose(mean, rows.mean(0))
    np.testing.assert_allclose(std, rows.std(0))
    low, high = statistics.extremes(rows)
    np.testing.assert_array_equal((low, high), (rows.min(0), rows.max(0)))
    gaussian = multivariate_normal(rows.mean(0), np.cov(rows.T, bias=True))
    score = statistics.gaussian_scores(rows, rows[:11])[0]
    assert score.mean == pytest.approx(gaussian.logpdf(rows[:11]).mean(), rel=1e-12)
    with pytest.raises(DataError, match="linear combinations"):
        statistics.gaussian_scores(np.ones((9, 2)))


def test_compare_and_fit_take_the_names(made, tmp_path, capsys):
    run("fetch", "power", "--from", made)
    out = tmp_path / "out"
    compare = "likelihood --data power --models nice --steps 2 --jobs 1 --out"
    assert command_line.run(compare, out) == 0
    assert "power is a subset here" in capsys.readouterr().out
    about = json.loads((out / "manifest.json").read_text())["data"]["power"]
    assert "power is a subset here" in about["note"]
    assert about["checksum"] == data.load("power").checksum
    assert "power is a subset here" in (out / "report.md").read_text()
    fit = "fit --model nice --data power --steps 2 --preprocess none --depth 1 --out"
    assert command_line.run(fit, tmp_path / "m") == 0
    assert "power is a subset here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "file", "validation", "test"),
    [
        ("power", "power/data.npy", -7.669, -7.786),
        ("bsds300", "BSDS300/BSDS300.hdf5", 96.632, 95.697),
    ],
)
def test_real_rows_where_they_are_present(name, file, validation, test, tmp_path, monkeypatch):
    """The Gaussian's figures of the development subsets; elsewhere there is nothing to judge by."""
    folder = store.read_only()
    rows = {"power": 69_984, "bsds300": 60_000}[name]
    if folder is None or not (folder / file).is_file():
        pytest.skip(f"CFLOWS_DATA has no {file}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = data.load(name)
    if len(found.train) != rows:
        pytest.skip("other rows than the development subset")
    assert found.subset
    scores = statistics.gaussian_scores(found.train, found.validation, found.test)
    assert [score.mean for score in scores] == pytest.approx([validation, test], abs=1e-3)
