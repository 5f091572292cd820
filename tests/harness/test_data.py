"""Data of the harness: recipes against naive references, splits, files and their refusals."""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from sklearn import datasets as sk

from baselines.harness.data import DataError, Dataset, files, load, names, sklearn_images, toy
from baselines.harness.data.toys import SIZES, TOYS

Matrix = npt.NDArray[np.float64]
Point = tuple[float, float]

N = 50_000


# Toys ---------------------------------------------------------------------------------------------


def gaussians(g: np.random.Generator) -> Point:
    """Draw one row of 8gaussians, with the centres written out."""
    s = 4 / math.sqrt(2)
    centres = [(4, 0), (-4, 0), (0, 4), (0, -4), (s, s), (s, -s), (-s, s), (-s, -s)]
    cx, cy = centres[g.integers(8)]
    return (cx + 0.5 * g.normal()) / 1.414, (cy + 0.5 * g.normal()) / 1.414


def spirals(g: np.random.Generator) -> Point:
    """Draw one row of 2spirals."""
    t = math.sqrt(g.random()) * 540 * 2 * math.pi / 360
    x, y = -math.cos(t) * t + g.random() * 0.5, math.sin(t) * t + g.random() * 0.5
    sign = 1 if g.random() < 0.5 else -1
    return sign * x / 3 + 0.1 * g.normal(), sign * y / 3 + 0.1 * g.normal()


def checkerboard(g: np.random.Generator) -> Point:
    """Draw one row of checkerboard by rejection from the square of side 8."""
    while True:
        x, y = g.uniform(-4, 4), g.uniform(-4, 4)
        if (math.floor(x / 2) + math.floor(y / 2)) % 2 == 0:
            return x, y


def circles(g: np.random.Generator) -> Point:
    """Draw one row of circles."""
    a, r = g.uniform(0, 2 * math.pi), 1 if g.random() < 0.5 else 0.5
    return 3 * (r * math.cos(a) + 0.08 * g.normal()), 3 * (r * math.sin(a) + 0.08 * g.normal())


def moons(g: np.random.Generator) -> Point:
    """Draw one row of moons."""
    a = g.uniform(0, math.pi)
    x, y = math.cos(a), math.sin(a)
    if g.random() < 0.5:
        x, y = 1 - x, 1 - y - 0.5
    return 2 * (x + 0.1 * g.normal()) - 1, 2 * (y + 0.1 * g.normal()) - 0.2


def pinwheel(g: np.random.Generator) -> Point:
    """Draw one row of pinwheel, with the row times the rotation matrix written out."""
    u, v = 1 + 0.3 * g.normal(), 0.1 * g.normal()
    a = 2 * math.pi * g.integers(5) / 5 + 0.25 * math.exp(u)
    (r00, r01), (r10, r11) = (math.cos(a), -math.sin(a)), (math.sin(a), math.cos(a))
    return 2 * (u * r00 + v * r10), 2 * (u * r01 + v * r11)


def rings(g: np.random.Generator) -> Point:
    """Draw one row of rings."""
    a, r = g.uniform(0, 2 * math.pi), (1, 0.75, 0.5, 0.25)[g.integers(4)]
    return 3 * r * math.cos(a) + 0.08 * g.normal(), 3 * r * math.sin(a) + 0.08 * g.normal()


def swissroll(g: np.random.Generator) -> Point:
    """Draw one row of swissroll."""
    t = 1.5 * math.pi * (1 + 2 * g.random())
    return (t * math.cos(t) + g.normal()) / 5, (t * math.sin(t) + g.normal()) / 5


REFERENCES: dict[str, Callable[[np.random.Generator], Point]] = {
    "8gaussians": gaussians,
    "2spirals": spirals,
    "checkerboard": checkerboard,
    "circles": circles,
    "moons": moons,
    "pinwheel": pinwheel,
    "rings": rings,
    "swissroll": swissroll,
}


@functools.cache
def reference(name: str) -> Matrix:
    """Draw N rows one by one."""
    g = np.random.default_rng(11)
    return np.array([REFERENCES[name](g) for _ in range(N)])


def test_every_toy_has_a_reference() -> None:
    """A toy that is added must be given a recipe to be judged by."""
    assert set(REFERENCES) == set(TOYS)
    assert set(TOYS) < set(names())


@pytest.mark.parametrize("name", TOYS)
def test_toy_rows_and_seeds(name: str) -> None:
    """Any number of rows, finite; the seed alone decides, whatever numpy's global state."""
    for n in (0, 1, 7, 1001):
        rows = toy(name, n, seed=n)
        assert rows.shape == (n, 2)
        assert rows.dtype == np.float64
        assert np.isfinite(rows).all()
    one, other = toy(name, 501, seed=1), toy(name, 501, seed=2)
    assert toy(name, 501, seed=1).tobytes() == one.tobytes()
    assert not np.isin(one, other).any()


@pytest.mark.parametrize("name", TOYS)
def test_toy_moments_and_quantiles(name: str) -> None:
    """Moments, deciles and polar waves agree within five standard errors.

    The waves exp(i (a r + b angle)) see what moments do not: the widths of arms, their pitch, and
    correlations within the noise.
    """
    ours, theirs = toy(name, N, seed=5), reference(name)
    deciles = np.quantile(theirs, np.linspace(0.1, 0.9, 9), axis=0)

    def statistics(rows: Matrix) -> Matrix:
        x, y = rows.T
        r, angle = np.hypot(x, y), np.arctan2(y, x)
        moments = [x, y, x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3, r, r**3]
        waves = [a * r + b * angle for a in range(-6, 7) for b in range(9) if (a, b) != (0, 0)]
        return np.column_stack(
            [*moments, *(rows < d for d in deciles), *map(np.cos, waves), *map(np.sin, waves)]
        )

    a, b = statistics(ours), statistics(theirs)
    error = np.sqrt(a.var(0) / N + b.var(0) / N)
    assert (np.abs(a.mean(0) - b.mean(0)) < 5 * error).all()


@pytest.mark.parametrize("name", TOYS)
def test_toy_density(name: str) -> None:
    """A grid of counts tells apart what moments cannot: handedness, width of arms, phases."""
    ours, theirs = toy(name, N, seed=6), reference(name)
    edges = np.linspace(theirs.min(), theirs.max(), 33)

    def p_value(rows: Matrix) -> float:
        grids = [np.histogram2d(r[:, 0], r[:, 1], bins=edges)[0].ravel() for r in (rows, theirs)]
        counts = np.stack(grids)
        filled = counts[:, counts.sum(0) >= 12]
        assert filled.sum() > 1.8 * N
        return float(stats.chi2_contingency(filled).pvalue)

    assert p_value(ours) > 1e-3
    # The test has power: what turns the other way does not pass.
    if name in {"pinwheel", "2spirals"}:
        assert p_value(ours * (1, -1)) < 1e-9


@pytest.mark.parametrize("name", ["circles", "moons", "swissroll"])
def test_toy_against_scikit_learn(name: str) -> None:
    """The three toys that the original takes from scikit-learn have its distribution."""
    theirs = {
        "circles": lambda: 3 * sk.make_circles(N, factor=0.5, noise=0.08, random_state=1)[0],
        "moons": lambda: 2 * sk.make_moons(N, noise=0.1, random_state=1)[0] + (-1, -0.2),
        "swissroll": lambda: sk.make_swiss_roll(N, noise=1.0, random_state=1)[0][:, [0, 2]] / 5,
    }[name]()
    ours = toy(name, N, seed=8)
    for a, b in itertools.chain(
        zip(ours.T, theirs.T, strict=True),
        [(np.hypot(*ours.T), np.hypot(*theirs.T)), (ours @ (1, 1), theirs @ (1, 1))],
    ):
        assert stats.ks_2samp(a, b).pvalue > 1e-3


@pytest.mark.parametrize("name", TOYS)
def test_toy_splits(name: str) -> None:
    """Three splits of the promised sizes that share no row, seeded as one."""
    data = load(name, seed=4)
    splits = (data.train, data.validation, data.test)
    assert tuple(map(len, splits)) == SIZES
    assert len(np.unique(np.concatenate(splits), axis=0)) == sum(SIZES)
    assert (data.name, data.kind, data.features) == (name, "toy", 2)
    assert data.columns == ("x0", "x1")
    assert load(name, seed=4).checksum == data.checksum != load(name, seed=5).checksum


def test_unknown_toy() -> None:
    """The message lists what there is."""
    with pytest.raises(DataError, match=r"no toy is called 'moon'; .*moons"):
        toy("moon", 3)


# Dataset and names --------------------------------------------------------------------------------


def tiny(n: int = 3) -> Dataset:
    """Return a small valid data set."""
    rows = np.arange(2.0 * n).reshape(n, 2)
    return Dataset("tiny", rows, rows + 1, rows + 2, ("a", "b"), "here", "none", "file")


def wide(data: Dataset) -> Dataset:
    """Return the same bytes as rows of three columns."""
    splits = (data.train, data.validation, data.test)
    train, validation, test = (rows.reshape(2, 3) for rows in splits)
    return replace(data, train=train, validation=validation, test=test, columns=("a", "b", "c"))


def test_checksum_sees_values_shapes_and_order_only() -> None:
    """One bit, a reshaped split and swapped splits count; memory layout and names do not."""
    data = tiny()
    same = replace(data, train=np.asfortranarray(data.train), name="other")
    assert same.checksum == data.checksum
    nudged = data.train.copy()
    nudged[-1, -1] = np.nextafter(nudged[-1, -1], np.inf)
    joined = np.concatenate([data.train, data.validation])
    for changed in (
        replace(data, train=nudged),
        replace(data, train=data.test, test=data.train),
        replace(data, train=joined[:2], validation=joined[2:]),
        wide(data),
    ):
        assert changed.checksum != data.checksum
    assert len(data.checksum) == 64


@pytest.mark.parametrize(
    "rows", [np.zeros((3, 2), np.float16), np.zeros((3, 1)), np.zeros(2), np.zeros((3, 2, 1))]
)
def test_dataset_refuses_other_rows(rows: Matrix) -> None:
    """A split of another dtype, width or rank is refused where it is made."""
    with pytest.raises(
        DataError, match=r"tiny: a split is .* must be float64 or .* of shape \(N, 2\)"
    ):
        replace(tiny(), validation=rows)


def test_error_is_one_line() -> None:
    """Whatever text a message quotes."""
    assert str(DataError("a\nb\t c")) == "a b c"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pinwheal", "did you mean pinwheel?"),
        ("MOONS", "did you mean moons"),
        ("patchs", "did you mean patches"),
        ("zzz", "Known names: 8gaussians, 2spirals,"),
        ("", "no data set or file is called ''"),
        ("x" * 5000, "Known names"),
        ("x" * 5000 + ".csv", "cannot be read"),
        ("nowhere.csv", "nowhere.csv: file not found"),
        ("no/where.NPY", "no/where.NPY: file not found"),
        ("moons.csv", "moons.csv: file not found"),
        ("./moons", "no data set or file is called './moons'"),
    ],
)
def test_unknown_name(name: str, says: str) -> None:
    """A near name is offered, a path is called a missing file."""
    with pytest.raises(DataError) as caught:
        load(name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_name_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare name is the registered one; anything spelled like a path is the file."""
    monkeypatch.chdir(tmp_path)
    np.savetxt("moons.csv", numbers(40, 3), delimiter=",")
    (tmp_path / "moons").write_text("1\n")
    assert load("moons").kind == "toy"
    assert load("moons.csv").kind == "file"
    assert load(Path("moons.csv")).name == "moons.csv"
    with pytest.raises(DataError, match=r"no suffix; save it as \.csv, \.npy or \.npz"):
        load("./moons")


# Patches ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patches() -> Dataset:
    """Return the patches of seed 0, read once."""
    return load("patches4")


def photographs() -> npt.NDArray[np.int64]:
    """Return both photographs in grey, by floating-point luma."""
    rgb = np.stack(sk.load_sample_images().images).astype(np.float64)
    return np.floor(rgb @ (0.299, 0.587, 0.114) + 0.5 + 1e-9).astype(np.int64)


def test_patches_shapes_and_range(patches: Dataset) -> None:
    """15 columns within (-1, 1), the splits' sizes, authors and licence named."""
    assert patches.train.shape == (60_000, 15)
    assert patches.validation.shape == patches.test.shape == (4240, 15)
    assert patches.columns == tuple(f"p{i}" for i in range(15))
    assert patches.kind == "image"
    for rows in (patches.train, patches.validation, patches.test):
        assert np.abs(rows).max() < 1
        # The dropped pixel is minus the sum of the others, so it is bounded too.
        assert np.abs(rows.sum(1)).max() < 1
    assert "danielbuechele" in patches.source
    assert "vultilion" in patches.source
    assert "https://creativecommons.org/licenses/by/2.0/" in patches.licence


def test_patches_share_no_pixel() -> None:
    """The pixels under the splits' positions are disjoint; the grids use each pixel once."""
    used = {}
    for split in ("train", "validation", "test"):
        at = sklearn_images.positions(split)
        count = np.zeros((2, 427, 640), dtype=int)
        for photo, top, left in at:
            count[photo, top : top + 4, left : left + 4] += 1
        used[split] = count
        assert len(np.unique(at, axis=0)) == len(at)
    assert np.stack([count > 0 for count in used.values()]).sum(0).max() == 1
    assert used["validation"].max() == used["test"].max() == 1
    bands = {split: set(np.unique(np.nonzero(c)[2] // 40)) for split, c in used.items()}
    assert bands["validation"] == {3, 11}
    assert bands["test"] == {7, 15}
    assert bands["train"] == set(range(16)) - {3, 7, 11, 15}


def test_patches_are_the_photographs(patches: Dataset) -> None:
    """A row is (grey + u) / 256 less its mean: u is then in [0, 1) up to one shift a patch."""
    grey = photographs()
    for row, (photo, top, left) in zip(patches.test, sklearn_images.positions("test"), strict=True):
        clean = grey[photo, top : top + 4, left : left + 4].ravel() / 256
        whole = np.append(row, -row.sum())
        noise = 256 * (whole - (clean - clean.mean()))
        assert np.ptp(noise) < 1
        assert abs(noise.sum()) < 1e-9


def test_patches_noise_is_uniform(patches: Dataset) -> None:
    """The noise, known up to its patch's mean, has the variance (15/16) / 12 of a uniform."""
    grey = photographs()
    windows = np.lib.stride_tricks.sliding_window_view(grey, (4, 4), axis=(1, 2))
    clean = windows[tuple(sklearn_images.positions("validation").T)].reshape(-1, 16) / 256
    noise = 256 * (patches.validation - (clean - clean.mean(1, keepdims=True))[:, :15])
    assert noise.var() == pytest.approx(15 / 16 / 12, rel=0.02)
    # Fresh for each patch and pixel.
    assert len(np.unique(noise.round(9))) > 0.99 * noise.size


def test_patches_are_drawn_without_replacement(
    patches: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No place comes twice, every band of training has its share, and the seed decides."""
    assert load("patches4").checksum == patches.checksum
    other = load("patches4", seed=1)
    assert not np.isin(other.train[:, 0], patches.train[:, 0]).any()
    # Same places, other noise.
    assert 0 < np.abs(other.test - patches.test).max() < 2 / 256

    taken = []

    def record(
        grey: npt.NDArray[np.int64], at: npt.NDArray[np.int64], rng: np.random.Generator, side: int
    ) -> Matrix:
        taken.append(at)
        return np.zeros((len(at), 15))

    monkeypatch.setattr(sklearn_images, "_patches", record)
    load("patches4")
    drawn = {tuple(place) for place in taken[0].tolist()}
    assert len(drawn) == 60_000
    assert drawn < {tuple(place) for place in sklearn_images.positions("train").tolist()}
    shares = np.bincount(taken[0][:, 0] * 16 + taken[0][:, 2] // 40, minlength=32) / 60_000
    assert shares[shares > 0] == pytest.approx(np.full(24, 1 / 24), rel=0.1)
    assert np.array_equal(taken[1], sklearn_images.positions("validation"))
    assert np.array_equal(taken[2], sklearn_images.positions("test"))


def test_patches_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remedy is a command."""
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install '\.\[bench\]'"):
        load("patches4")


def test_patches_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is where only the reader of the photographs is missing."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"pillow .* pip install '\.\[bench\]'"):
        load("patches4")


# Files --------------------------------------------------------------------------------------------


def numbers(n: int, features: int) -> Matrix:
    """Return rows whose magnitudes range widely, so that parsing must be exact."""
    g = np.random.default_rng(3)
    return g.normal(size=(n, features)) * 10.0 ** g.integers(-200, 200, (n, features))


def text_of(rows: Matrix, delimiter: str = ",", header: str = "") -> str:
    """Write rows so that Python reads the same bits back."""
    lines = [delimiter.join(map(repr, row)) for row in rows.tolist()]
    return "\n".join([header, *lines] if header else lines) + "\n"


def all_rows(data: Dataset) -> Matrix:
    """Return the rows of all splits in sorted order."""
    rows = np.concatenate([data.train, data.validation, data.test])
    return rows[np.lexsort(rows.T)]


def assert_holds(data: Dataset, rows: Matrix) -> None:
    """Check that every row arrived, once, with the same bits."""
    assert np.array_equal(all_rows(data), rows[np.lexsort(rows.T)])


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " ", ", ", "   "])
@pytest.mark.parametrize("header", [(), ("a", "b c", '"d"')])
@pytest.mark.parametrize("dialect", ["\n", "\r\n", "\ufeff", "blank lines"])
def test_csv_round_trip(
    tmp_path: Path, delimiter: str, header: tuple[str, ...], dialect: str
) -> None:
    """Every delimiter, with and without a header, from Unix, Windows and Excel, bit for bit."""
    if delimiter.isspace() and delimiter != "\t":
        header = tuple(name.replace(" ", "_") for name in header)
    rows = numbers(57, 3)
    text = text_of(rows, delimiter, delimiter.join(header))
    text = {
        "\n": text,
        "\r\n": text.replace("\n", "\r\n"),
        "\ufeff": "\ufeff" + text,
        "blank lines": "\n" + text.replace("\n", "\n\n") + "  \n",
    }[dialect]
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())
    data = load(path)
    assert_holds(data, rows)
    assert data.columns == (tuple(h.strip('"') for h in header) or ("x0", "x1", "x2"))
    assert (data.name, data.kind, data.source) == ("rows.csv", "file", str(path))


def test_csv_with_quotes(tmp_path: Path) -> None:
    """Around numbers, and around names that hold another delimiter."""
    rows = numbers(30, 2)
    text = text_of(rows).replace(",", '","').replace("\n", '"\n"').rstrip('"')
    (tmp_path / "rows.csv").write_text(f'"a;b","c|d"\n"{text}')
    data = load(tmp_path / "rows.csv")
    assert_holds(data, rows)
    assert data.columns == ("a;b", "c|d")


@pytest.mark.parametrize("header", ["", "length", "length of stay", "a, b"])
def test_csv_of_one_column(tmp_path: Path, header: str) -> None:
    """Where there is no delimiter to find, and one may even stand in the quoted header."""
    rows = numbers(30, 1)
    (tmp_path / "one.csv").write_text(text_of(rows, header=f'"{header}"' if header else ""))
    data = load(tmp_path / "one.csv")
    assert_holds(data, rows)
    assert data.columns == (header or "x0",)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_whose_last_field_is_ended_by_a_delimiter(tmp_path: Path, delimiter: str) -> None:
    rows = numbers(30, 2)
    lines = [delimiter.join(map(repr, row)) + delimiter for row in rows.tolist()]
    for header, columns in (([], ("x0", "x1")), ([delimiter.join("ab") + delimiter], ("a", "b"))):
        (tmp_path / "t.csv").write_text("\n".join([*header, *lines]))
        values, found = files.table(tmp_path / "t.csv")
        assert found == columns
        assert np.array_equal(values, rows)
    (tmp_path / "t.csv").write_text("\n".join([delimiter] * 30))
    with pytest.raises(DataError, match="has no value in line 1"):
        files.table(tmp_path / "t.csv")


def test_csv_keeps_a_nameless_column(tmp_path: Path) -> None:
    """As in a table written by pandas with its index."""
    rows = numbers(30, 2)
    (tmp_path / "rows.csv").write_text(text_of(rows, header=",b"))
    assert load(tmp_path / "rows.csv").columns == ("x0", "b")


@pytest.mark.parametrize(
    "array",
    [
        numbers(41, 3),
        np.asfortranarray(numbers(41, 3)),
        numbers(41, 3).astype(">f8"),
        np.random.default_rng(0).normal(size=(41, 2)).astype(np.float32),
        np.random.default_rng(0).integers(-99, 99, (41, 2)),
        np.random.default_rng(0).permutation(41).astype(np.uint8),
    ],
    ids=["float64", "fortran", "big endian", "float32", "int64", "vector"],
)
def test_npy_round_trip(tmp_path: Path, array: npt.NDArray[np.float64]) -> None:
    """Every layout and real dtype arrives as the same float64 numbers; a vector is one column."""
    np.save(tmp_path / "rows.npy", array)
    data = load(str(tmp_path / "rows.npy"))
    rows = array.astype(np.float64).reshape(41, -1)
    assert_holds(data, rows)
    assert data.columns == tuple(f"x{i}" for i in range(rows.shape[1]))
    assert data.train.dtype == np.float64
    assert data.train.dtype.isnative


@pytest.mark.parametrize(("n", "held_out"), [(20, 2), (29, 2), (100, 10), (1234, 123)])
def test_file_split(tmp_path: Path, n: int, held_out: int) -> None:
    """80 / 10 / 10, shuffled by the seed and by nothing else."""
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(float(n)))
    data = load(path)
    splits = (data.train, data.validation, data.test)
    assert tuple(map(len, splits)) == (n - 2 * held_out, held_out, held_out)
    assert_holds(data, np.arange(float(n))[:, None])
    for part in splits[1:]:  # the first held-out rows must stand for all
        assert n < 100 or not np.array_equal(np.sort(part, axis=0), part)
    blocks = np.concatenate(splits[1:])[:, 0] // 10
    assert np.bincount(blocks.astype(int)).tolist() == [2] * held_out
    assert load(path).checksum == data.checksum != load(path, seed=1).checksum


GOOD = [f"{i},{i * i}.5" for i in range(1, 31)]


def swap(line: int, text: str, header: str = "a,b") -> str:
    """Return a good table, with one line (counted from 1, the header) replaced."""
    lines = [header, *GOOD]
    lines[line - 1] = text
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", ["the file is empty", "at least 20 rows"]),
        (" \n\n", ["the file is blank"]),
        ("\ufeff", ["the file is blank"]),
        ("a,b\n", ["no rows below the header"]),
        ("\n".join(GOOD[:19]), ["too few rows (19)", "at least 20"]),
        (swap(7, "6,red"), ["column 'b'", "line 7 holds 'red'", "drop the column"]),
        (swap(7, "6,5 # five"), ["line 7 holds '5 # five'"]),
        (swap(7, "#6,5"), ["column 'a'", "line 7 holds '#6'"]),
        (swap(7, "6,1_0"), ["column 'b'", "line 7 holds '1_0'"]),
        (swap(7, "6,٣"), ["column 'b'", "line 7 holds '٣'"]),
        (swap(7, '6,"1,5"'), ["column 'b'", "line 7 holds '1,5'"]),
        (swap(7, "6,"), ["column 'b' has no value in line 7", "fill them in"]),
        ("\n\n" + swap(7, "6,red"), ["line 9 holds 'red'"]),
        (swap(7, "6,5,4"), ["line 7 splits at ',' into 3, line 1 into 2"]),
        (swap(7, "6"), ["line 7 splits at ',' into 1, line 1 into 2"]),
        (swap(1, "a,b,c"), ["line 2 splits at ',' into 2, line 1 into 3"]),
        (swap(1, "1,2,3"), ["line 2 splits at ',' into 2, line 1 into 3"]),
        ("\n".join(["1,", *GOOD]), ["column 'x1' has no value in line 1"]),
        (swap(7, "6,nan"), ["column 'b' is nan in line 7", "drop such rows"]),
        (swap(7, "6,-inf"), ["column 'b' is -inf in line 7"]),
        (swap(7, "1e999,6"), ["column 'a' is inf in line 7"]),
        ("\n\n" + swap(7, "6,nan"), ["line 9"]),
        ("\n".join(["a,b", *(f"{i},7" for i in range(30))]), ["column 'b' is constant, 7"]),
        (
            "\n".join(f"{i};{i},5" for i in range(30)),
            ["line 1 holds '0,5'", "with a decimal point"],
        ),
        (swap(7, '6,"x\ny"'), ["line 7 holds 'x'"]),
        (swap(7, f"6,{'y' * 200_000}"), ["field larger than field limit"]),
    ],
)
def test_csv_refused(tmp_path: Path, content: str, says: list[str]) -> None:
    """Each defect is one line that names the file, the place and the remedy."""
    path = tmp_path / "bad.csv"
    path.write_text(content, encoding="utf-8")
    refused(path, says)


def refused(path: Path, says: list[str]) -> None:
    """Check that a file is refused in one short line that says all this."""
    with pytest.raises(DataError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 200
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((30, 2, 2)), ["shape (30, 2, 2)", "matrix"]),
        (np.float64(3.0), ["shape ()"]),
        (np.zeros((30, 0)), ["shape (30, 0)"]),
        (np.zeros((0, 3)), ["too few rows (0)"]),
        (np.arange(19.0), ["too few rows (19)"]),
        (np.zeros((30, 2), complex), ["complex128", "real numbers"]),
        (np.zeros((30, 2), bool), ["bool", "real numbers"]),
        (np.full((30, 2), "a"), ["<U1", "real numbers"]),
        (np.full((30, 2), None), ["not a complete .npy file of plain numbers"]),
        (np.where(np.arange(60) == 33, np.nan, 1.0).reshape(30, 2), ["column 'x1' is nan", "16"]),
        (np.full((30, 1), np.inf), ["column 'x0' is inf in row 0"]),
        (np.full((30, 1), np.longdouble("1e4000")), ["column 'x0' is inf in row 0"]),
        (np.column_stack([np.arange(30), np.ones(30)]), ["column 'x1' is constant, 1 in all 24"]),
    ],
)
def test_npy_refused(tmp_path: Path, array: npt.NDArray[np.float64], says: list[str]) -> None:
    """The same for arrays: rank, dtype, values."""
    np.save(tmp_path / "bad.npy", array)
    refused(tmp_path / "bad.npy", says)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.doc", b"1,2\n", ["suffix '.doc'", "save it as .csv, .npy or .npz"]),
        ("rows", b"1,2\n", ["no suffix", "save it as .csv, .npy or .npz"]),
        ("rows.npy", b"", ["the file is empty"]),
        ("rows.npy", b"1,2\n", ["not a complete .npy file of plain numbers", "numpy.save"]),
        ("rows.npy", b"\x93NUMPY\x01\x00\x10", ["not a complete .npy file of plain numbers"]),
        ("rows.csv", b"a,b\n1,2\xff\n", ["not UTF-8 text (byte 7)", "UTF-8"]),
        ("rows.csv", "a,b\n1,2\n".encode("utf-16"), ["not UTF-8 text (byte 0)"]),
    ],
)
def test_bytes_refused(tmp_path: Path, name: str, content: bytes, says: list[str]) -> None:
    """Other formats, truncated and wrongly encoded files."""
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, says)


def npy(header: str) -> bytes:
    """Write the start of an .npy file of version 1.0 with a header of one's own."""
    text = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("latin1")


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 and no archive",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, 2), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 40 + ", 2), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (30, 2), 'x: }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (30, 2L, }"),
        npy("{'descr': ['<f8'], 'fortran_order': False, 'shape': (30, 2), }"),
        npy("((((((((((("),
        npy("\x00"),
    ],
)
def test_damaged_arrays_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever numpy raises for one."""
    (tmp_path / "rows.npy").write_bytes(content)
    refused(tmp_path / "rows.npy", ["not a complete .npy file of plain numbers", "numpy.save"])


def test_archive_refused(tmp_path: Path) -> None:
    """An .npz under the name of an .npy."""
    with (tmp_path / "rows.npy").open("wb") as file:
        np.savez(file, rows=np.zeros((30, 2)))
    refused(tmp_path / "rows.npy", ["npz archive", "numpy.save"])


@pytest.mark.parametrize("name", ["folder", "folder.csv"])
def test_directory_refused(tmp_path: Path, name: str) -> None:
    """Even one with the suffix of a file."""
    (tmp_path / name).mkdir()
    refused(tmp_path / name, ["is a directory"])


def test_missing_and_unreadable_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says is passed on in one line."""
    refused(tmp_path / "rows.csv", ["file not found"])
    (tmp_path / "rows.csv").write_text("1\n")

    def deny(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    refused(tmp_path / "rows.csv", ["cannot be read: Permission denied"])


def load_column(path: Path, n: int) -> Dataset:
    """Return a data set whose one column says which row of the file is where."""
    np.save(path, np.arange(float(n)))
    return load(path)


def test_constant_in_training_only(tmp_path: Path) -> None:
    """A column that varies in the held-out rows alone is refused as well."""
    rows = np.column_stack([np.arange(40.0), np.zeros(40)])
    path = tmp_path / "rows.npy"
    rows[int(load_column(path.with_name("number.npy"), 40).test[0, 0]), 1] = 1.0
    np.save(path, rows)
    refused(path, ["column 'x1' is constant, 0 in all 32 rows of the training split"])


def test_suffixes() -> None:
    """In either case, for paths and strings."""
    assert files.is_supported(Path("a/b.CSV"))
    assert files.is_supported("b.npy")
    assert files.is_supported("b.npz")
    assert files.is_supported("b.txt.gz")
    assert not files.is_supported("b.doc")
