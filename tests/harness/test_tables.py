"""Users' tables as the tools that people use write them, and the choice of their columns."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import cflows
from baselines import NICE
from baselines.harness import cli, data
from baselines.harness.data import DataError, files, load
from baselines.harness.experiment import run as runner
from baselines.harness.experiment.cell import Cell

pandas = pytest.importorskip("pandas")
N = 60


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def refused(capsys, *arguments, words):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def normal(n=N, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


BODY = "".join(",".join(map(repr, row)) + "\n" for row in normal().tolist())
R_ROWS = "".join(f'"{i}" ' + " ".join(map(repr, r)) + "\n" for i, r in enumerate(normal().tolist()))


def without_labels(text):
    return "".join(f"{i},{line}\n" for i, line in enumerate(text.splitlines()))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("# a,b,c\n" + BODY, "abc"),
        ("# a b c\n" + BODY.replace(",", " "), "abc"),
        ("# made by x\n# 2020\na,b,c\n" + BODY, "abc"),
        ("# made by x\n" + BODY, ("x0", "x1", "x2")),
        ("sep=;\na;b;c\n" + BODY.replace(",", ";"), "abc"),
        ('"a\nin m",b,c\n' + BODY, ("a in m", "b", "c")),
        ('"a" "b" "c"\n' + R_ROWS, "abc"),
        (",a,b,c\n" + without_labels(BODY), "abc"),
        ("Unnamed: 0,a,b,c\n" + without_labels(BODY), "abc"),
        ("a,b,c\n" + BODY.replace("\n", ",\n"), "abc"),
        ("a,b,c\n" + BODY + "\t\n", "abc"),
        ("a,b,c\n" + BODY + "  \n,,\n", "abc"),
        ("sep=\t\na\tb\tc\n" + BODY.replace(",", "\t"), "abc"),
        ('"% a","b  of\tx",c\n' + BODY, ("a", "b of x", "c")),
        ("net,1,1,2\nhemi,l,r,l\n,,,\n" + without_labels(BODY), ("1 l", "1 r", "2 l")),
    ],
)
def test_tables_as_other_programs_write_them(tmp_path, text, columns):
    (tmp_path / "t.csv").write_text(text)
    values, found = files.table(tmp_path / "t.csv")
    if "net" in text:
        values, found = values[:, -3:], found[-3:]
    assert found == tuple(columns)
    assert np.array_equal(values, normal())


def test_a_column_that_counts_the_rows_is_told_of(tmp_path):
    pandas.DataFrame(normal(), columns=list("abc")).to_csv(tmp_path / "t.csv")
    assert "no name and counts the rows" in load(tmp_path / "t.csv").notes[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04 and more", "a zip archive, such as an .xlsx"),
        (b"\x93NUMPY", "an .npy array"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (gzip.compress(BODY.encode(), mtime=0)[:60], "a damaged gzip archive"),
        (gzip.compress(b"PK\x03\x04", mtime=0), "a gzip archive of a zip archive"),
        (("id,b\n" + "".join(f"{10**18 + i},{i * i}\n" for i in range(40))).encode(), "by more"),
        (("a,b,c\n" + BODY + "# end\n").encode(), "line 62 is a comment"),
        (("a,b,c\n# kg,m,s\n" + BODY).encode(), "line 2 is a comment, '# kg'; delete it"),
        (("a,b,c\n# units: kg m s\n" + BODY).encode(), "line 2 is a comment, '# units: kg m s'"),
        (("a,b,c\n# in kg,m,s,-\n" + BODY).encode(), "line 2 is a comment, '# in kg'; delete"),
        (("a,b,c\n" + BODY + "% a,b,c\n" + BODY).encode(), "line 62 is a comment, '% a'"),
        (b"x\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(40)), "line 2 holds '0,0' under"),
        (b"a,b\n1,NA\n2,\n3,4\n" * 1 + b"5,6\n" * 30, "no value in line 2 ('NA') and in 1 more of"),
    ],
)
def test_one_line_points_at_the_cause(tmp_path, content, says):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(says)):
        load(tmp_path / "t.csv")


def test_notes_that_look_like_comments_are_not_blamed(tmp_path):
    rows = "".join(f"# see {i},{i * i},{i}\n" for i in range(40))
    (tmp_path / "t.csv").write_text(f"note,a,b\n{rows}# see,1,\n")
    with pytest.raises(DataError, match="column 'b' has no value in line 42"):
        load(tmp_path / "t.csv", drop=["note"])


def test_without_pandas(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text(BODY)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DataError, match=r"needs pandas.*pip install 'cflows\[data\]'"):
        load(tmp_path / "t.csv")


def test_rows_with_blanks_are_no_header(tmp_path):
    (tmp_path / "t.csv").write_text("species,a,b\nA,1,2\nB,,\nC,3,4\n")
    with pytest.raises(DataError, match="'a' has no value in line 3, 'b' has no value in line 3"):
        files.table(tmp_path / "t.csv")


# Every format -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One table in every format, and a model of it."""
    pytest.importorskip("pyarrow")
    place = tmp_path_factory.mktemp("tables")
    frame = pandas.DataFrame(normal(200), columns=list("abc"))
    for name in ("t.csv", "t.csv.gz", "t.txt.gz"):
        frame.to_csv(place / name, index=False)
    frame.to_csv(place / "t.tsv", index=False, sep="\t")
    frame.to_csv(place / "t.dat", index=False, sep=" ")
    frame.to_parquet(place / "t.parquet")
    frame.to_feather(place / "t.feather")
    (place / "named.csv").write_bytes((place / "t.parquet").read_bytes())
    (place / "packed.csv").write_bytes((place / "t.csv.gz").read_bytes())
    run("fit", "--model", "maf", "--data", place / "t.csv", "--out", place / "m", "--steps", 5,
        "--depth", 1, "--preprocess", "standardise")  # fmt: skip
    return place


NAMES = ["t.csv.gz", "t.txt.gz", "t.tsv", "t.dat", "t.parquet", "t.feather", "named.csv",
         "packed.csv"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_format_scores_alike(folder, tmp_path, name):
    found = []
    for source in ("t.csv", name):
        run("score", folder / "m", "--data", folder / source, "--out", tmp_path / "p.npy")
        found.append(np.load(tmp_path / "p.npy"))
    assert np.array_equal(*found)
    assert load(folder / name).checksum == load(folder / "t.csv").checksum


def test_the_estimator_scores_a_frame_as_the_command_scores_files(folder, tmp_path):
    pytest.importorskip("sklearn")
    from baselines.sklearn import DensityEstimator

    frame = pandas.read_parquet(folder / "t.parquet")
    estimator = DensityEstimator("maf", depth=1, steps=5).fit(frame)
    estimator.flow_.save(tmp_path / "m")
    expected = estimator.score_samples(frame)
    for name in ("t.csv", "t.csv.gz", "t.parquet"):
        run("score", tmp_path / "m", "--data", folder / name, "--out", tmp_path / "p.npy")
        np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), expected)


def test_parquet_has_the_names_of_text(folder, tmp_path):
    frame = pandas.DataFrame(normal(), columns=["% a", " b  of\tx", "c"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        assert files.table(tmp_path / name)[1] == ("a", "b of x", "c")
        assert load(tmp_path / name, drop=["a", "b of x"]).columns == ("c",)


def test_columns_that_are_dropped_are_not_looked_at(tmp_path, monkeypatch):
    frame = pandas.DataFrame(normal(), columns=list("abc"))
    frame.insert(0, "s", "some text")
    frame["d"] = "2020-01-01"
    frame.to_csv(tmp_path / "t.csv")
    monkeypatch.setattr("baselines.harness.data.text.columns_of", lambda *_: pytest.fail("looked"))
    assert load(tmp_path / "t.csv", drop=["s", "d"]).columns == ("a", "b", "c")
    assert np.array_equal(
        files.table(tmp_path / "t.csv", lambda names: [names.index("c"), names.index("a")])[0],
        normal()[:, [2, 0]],
    )
    for line in ("7,A,1,2,3", "7,A,1,2,3,2020-01-01,5"):  # too short, too long
        lines = (tmp_path / "t.csv").read_text().splitlines()
        lines[7] = line
        (tmp_path / "bad.csv").write_text("\n".join(lines))
        with pytest.raises(DataError, match="line 8 splits at ','"):
            load(tmp_path / "bad.csv", drop=["s", "d"])


def test_the_descriptor_of_standard_input_is_standard_input(folder, tmp_path):
    command = [sys.executable, "-m", "baselines.harness", "score", folder / "m", "--data",
               "/dev/stdin", "--out", tmp_path / "p.npy"]  # fmt: skip
    with open(folder / "t.csv.gz", "rb") as file:
        subprocess.run(command, stdin=file, check=True)
    run("score", folder / "m", "--data", folder / "t.csv", "--out", tmp_path / "q.npy")
    assert np.array_equal(np.load(tmp_path / "p.npy"), np.load(tmp_path / "q.npy"))


def test_standard_input_is_read_once(folder, tmp_path, monkeypatch, capsys):
    content = (folder / "t.csv").read_bytes()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))
    assert run("score", folder / "m", "--data", "-", "--out", tmp_path / "p.npy") == 0
    refused(capsys, "likelihood", "--data", "-", "--out", tmp_path / "o", words=("a file",))


def test_frames_are_data(folder):
    frame = pandas.read_parquet(folder / "t.parquet")
    assert load(frame).checksum == load(folder / "t.csv").checksum
    flows = []
    for rows in (frame, torch.tensor(frame.values.tolist(), dtype=torch.float64)):
        torch.manual_seed(0)
        flows.append(NICE(3))
        cflows.fit(flows[-1], rows, rows, steps=3, progress=False, device="cpu")
    for a, b in zip(*(flow.state_dict().values() for flow in flows), strict=True):
        assert torch.equal(a, b)
    named = cflows.TableFlow(cflows.Affine([0.0, 0.0], [1.0, 1.0]), columns=["c", "a"])
    from cflows.training.rows import rows_for

    expected = torch.tensor(frame[["c", "a"]].values.tolist())
    assert torch.equal(rows_for(named, frame, "train").x, expected)
    with pytest.raises(TypeError, match=r"no numbers, 's': leave them out, as by drop"):
        cflows.fit(NICE(4), frame.assign(s="x"), steps=1, progress=False)
    with pytest.raises(ValueError, match=r"no value in 200 rows, in the columns 's'"):
        cflows.fit(NICE(4), frame.assign(s=np.nan), steps=1, progress=False)


# The choice of columns ----------------------------------------------------------------------------

KINDS = {
    "number": lambda g: g.normal(size=N).round(6),
    "count": lambda g: g.integers(1, 500, N),
    "text": lambda g: g.choice(["Adelie", "Gentoo"], N),
    "date": lambda g: np.datetime64("2020-01-01") + np.arange(N),
    "time": lambda g: [f"2019-03-23 20:{i:02}:09" for i in range(N)],
    "boolean": lambda g: g.random(N) < 0.5,
    "blank": lambda g: np.where(g.random(N) < 0.1, np.nan, g.normal(size=N)),
}
USABLE = ("number", "count", "boolean")
SHAPES = {
    "anagrams": "count text count count count",
    "anscombe": "text number number",
    "attention": "count count text count number",
    "car_crashes": "number number number number text",
    "diamonds": "number text text text number count",
    "dots": "text text count number number",
    "dowjones": "date number number",
    "exercise": "count text count time text",
    "flights": "count text count",
    "fmri": "text count text text number",
    "geyser": "number count text",
    "glue": "text count text text number",
    "healthexp": "count text number number",
    "iris": "number number number number text",
    "mpg": "number count number blank count text text",
    "penguins": "text text blank blank blank blank text",
    "planets": "text count blank blank number number",
    "seaice": "date number number",
    "taxis": "time time count number number text blank",
    "tips": "number number text text text text count",
    "titanic": "count count text number boolean blank text boolean",
}


@pytest.mark.parametrize("name", [*SHAPES, "brain_networks"])
def test_tables_that_people_try_first(name, tmp_path, capsys):
    """Text, blanks, dates and booleans: the message says what to type, and that is enough."""
    g = np.random.default_rng(1)
    kinds = SHAPES.get(name, "number number number").split()
    frame = pandas.DataFrame({f"{k} {i}": KINDS[k](g) for i, k in enumerate(kinds)})
    if name == "brain_networks":
        frame.columns = pandas.MultiIndex.from_tuples(
            [("1", "1", "lh"), ("1", "1", "rh"), ("2", "1", "lh")],
            names=["network", "node", "hemi"],
        )
        text = frame.to_csv()
        if "\n,,,\n" not in text:  # as older versions end such a header
            text = text.replace("\n0,", "\n,,,\n0,", 1)
        (tmp_path / "t.csv").write_text(text)
        kinds, usable = [], ["1 1 lh", "2 1 lh"]
    else:
        frame.to_csv(tmp_path / "t.csv", index=False)
        usable = [c for c, kind in zip(frame.columns, kinds, strict=True) if kind in USABLE]
        unusable = [c for c in frame.columns if c not in usable]
        if not usable:  # penguins: rows with blanks are the user's to drop
            usable, unusable = list(frame.columns[2:6]), [*frame.columns[:2], frame.columns[6]]
            frame.dropna().to_csv(tmp_path / "t.csv", index=False)
    common = ["fit", "--model", "nice", "--data", tmp_path / "t.csv", "--depth", 1, "--steps", 1,
              "--preprocess", "standardise", "--out", tmp_path / "m"]  # fmt: skip
    if kinds:
        refused(capsys, *common, words=(f"--drop '{unusable[0]}'", *map(repr, unusable[:2])))
        assert run(*common, "--drop", *unusable) == 0
        assert cflows.load(tmp_path / "m").columns == tuple(usable)
    assert run(*common, "--columns", *usable[::-1]) == 0
    assert cflows.load(tmp_path / "m").columns == tuple(usable)


def test_the_remedy_names_columns_like_options(tmp_path, capsys):
    frame = pandas.DataFrame(normal(), columns=["a", "-b", "c"])
    frame["--text"] = frame["a text"] = "x"
    frame.to_csv(tmp_path / "t.csv", index=False)
    common = ["fit", "--model", "nice", "--data", tmp_path / "t.csv", "--depth", 1, "--steps", 1,
              "--preprocess", "standardise", "--out", tmp_path / "m"]  # fmt: skip
    refused(capsys, *common, words=("--drop 'a text' --drop=--text",))
    assert run(*common, "--drop", "a text", "--drop=--text", "--drop=-b") == 0
    assert cflows.load(tmp_path / "m").columns == ("a", "c")
    assert run(*common, "--columns=-b", "--columns", "a") == 0
    assert cflows.load(tmp_path / "m").columns == ("a", "-b")


@pytest.fixture
def mixed(tmp_path):
    frame = pandas.DataFrame(normal(100), columns=["length", "width", "mass"])
    frame.insert(0, "species", "A")
    frame["one"] = 1.0
    frame.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def test_names_that_no_column_has(mixed, capsys):
    fit = ["fit", "--model", "nice", "--out", mixed.with_name("m"), "--data", mixed]
    refused(capsys, *fit, "--drop", "spices", words=("'spices' for --drop; did you mean species?",))
    refused(capsys, *fit, "--columns", "Widht", words=("for --columns; did you mean width?",))
    refused(capsys, *fit, "--drop", "mass", "--columns", "mass", words=("--drop and by --columns",))
    refused(capsys, *fit, "--drop", "species", words=("'one' is constant", "--drop one"))
    refused(capsys, "fit", "--model", "nice", "--out", mixed.with_name("m"), "--data", "moons",
            "--drop", "x0", words=("--drop are for files",))  # fmt: skip
    assert run("data", "check", mixed, "--drop", "species", "one") == 0
    assert "3 columns" in capsys.readouterr().out


def test_a_context_may_be_constant_and_stands_beside_the_columns(mixed, tmp_path):
    assert run("fit", "--model", "nice", "--data", mixed, "--columns", "length", "width",
               "--context", "mass", "one", "--depth", 1, "--steps", 2, "--out", tmp_path / "m",
               "--preprocess", "standardise") == 0  # fmt: skip
    flow = cflows.load(tmp_path / "m")
    assert flow.columns == ("length", "width")
    assert flow.context_columns == ("mass", "one")
    assert (float(flow.context_loc[1]), float(flow.context_scale[1])) == (1.0, 1.0)
    # Found by name beside text, here and in a file of its own.
    assert run("score", tmp_path / "m", "--data", mixed, "--out", tmp_path / "p.csv") == 0
    assert run("sample", tmp_path / "m", "-n", 1, "--context", mixed, "--out",
               tmp_path / "s.csv") == 0  # fmt: skip
    assert data.table(tmp_path / "s.csv")[0].shape == (100, 4)


def test_streamed_columns(tmp_path, monkeypatch):
    rows = normal(300, 4)
    rows[:, 3] = 2.0
    np.save(tmp_path / "t.npy", rows)
    monkeypatch.setattr(files, "STREAMED_BYTES", 10)
    stream = files.stream(tmp_path / "t.npy", columns=["x2", "x0"], spared=["x3"])
    assert stream.columns == ("x0", "x2", "x3")
    assert stream.still == ("x3",)
    expected = load(tmp_path / "t.npy", columns=["x0", "x2"]).train
    assert np.array_equal(stream.part("train", [0, 1])[:], expected.astype(np.float32))


def test_a_comparison_keeps_the_choice_in_its_cells(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(runner.contents, "write", lambda out: out)
    monkeypatch.setattr(runner.contents, "summary", lambda out: "")
    keys = []
    for drop in (["species", "one"], ["species", "one", "mass"]):
        assert run("likelihood", "--models", "nice", "--steps", 1, "--seeds", 0, "--jobs", 1,
                   "--data", mixed, "--drop", *drop, "--out", tmp_path / "o") == 0  # fmt: skip
        assert json.loads((tmp_path / "o" / "manifest.json").read_text())["drop"] == drop
        keys.append({p.parent.name for p in (tmp_path / "o").glob("cells/*/result.json")})
    assert keys[0] < keys[1]
    cell = Cell("t", "t", "0", "nice", 1, 0, 1, None, 0.1, columns=("a", "b"))
    assert cell.key != Cell("t", "t", "0", "nice", 1, 0, 1, None, 0.1).key
