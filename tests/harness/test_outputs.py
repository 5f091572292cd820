"""What the command writes to: links, pipes, standard output, full and read-only disks."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Thread

import disks
import numpy as np
import pytest
from command_line import refused, run

import cflows
from baselines.harness.experiment import cells
from baselines.harness.experiment.cell import Cell

FIT = "fit --model nice --depth 1 --steps 2 --preprocess standardise --data"


@pytest.fixture
def model(tmp_path) -> Path:
    cflows.Flow(cflows.Affine([1.0, 2.0], [1.0, 3.0])).save(tmp_path / "m.flow")
    return tmp_path / "m.flow"


@pytest.fixture
def table(tmp_path) -> Path:
    rows = np.random.default_rng(0).normal(size=(200, 2))
    np.savetxt(tmp_path / "t.csv", rows, delimiter=",", header="a,b", comments="")
    return tmp_path / "t.csv"


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def test_links_stay(model, table, tmp_path):
    far = tmp_path / "far"
    far.mkdir()
    for name in ("p.csv", "s.npy", "n.flow"):
        (tmp_path / name).symlink_to(far / name)
    assert run("score", model, "--data", table, "--out", tmp_path / "p.csv") == 0
    assert run("sample", model, "-n", 3, "--out", tmp_path / "s.npy") == 0
    assert run(FIT, table, "--out", tmp_path / "n.flow") == 0
    assert all((tmp_path / name).is_symlink() for name in ("p.csv", "s.npy", "n.flow"))
    assert sorted(path.name for path in far.iterdir()) == ["n.flow", "p.csv", "s.npy"]
    assert len((far / "p.csv").read_text().splitlines()) == 201
    assert np.load(far / "s.npy").shape == (3, 2)
    assert cflows.load(tmp_path / "n.flow").columns == ("a", "b")


@pytest.mark.parametrize("name", ["pipe", "pipe.csv"])
def test_a_pipe_takes_text_under_any_name(name, model, tmp_path):
    pipe, got = tmp_path / name, []
    os.mkfifo(pipe)
    reader = Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    assert run("sample", model, "-n", 3, "--out", pipe) == 0
    reader.join(20)
    assert got[0].startswith("x0,x1\n")
    assert got[0].count("\n") == 4
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_stays(model, table, tmp_path):
    null = tmp_path / "null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert run(FIT, table, "--out", null) == 0
    assert run("score", model, "--data", table, "--out", null) == 0
    assert stat.S_ISCHR(null.stat().st_mode)


@pytest.mark.parametrize("out", ["-", "/dev/stdout", "/dev/fd/1"])
def test_rows_go_alone_to_standard_output(out, model, table, capsys):
    assert run("score", model, "--data", table, "--out", out) == 0
    printed = capsys.readouterr()
    header, *lines = printed.out.splitlines()
    assert header == "log_prob"
    assert len([float(line) for line in lines]) == 200
    assert printed.err.startswith("log-densities of 200 rows")


def test_what_standard_output_does_not_take(table, tmp_path, capsys):
    refused(capsys, FIT, table, "--out", "-", words="name a file")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = FIT, table, "--out", tmp_path / "n", "--checkpoint"
    refused(capsys, *command, pipe, words="keeps no checkpoint")
    long = "c" * 256
    refused(capsys, *command, tmp_path / long, words=f"{long}: File name too long")
    assert not (tmp_path / "n").exists()


def test_two_names_of_one_file(table, tmp_path, capsys):
    (tmp_path / "link").symlink_to("n.flow")
    checkpoint = "--checkpoint", tmp_path / "link"
    words = "cannot be the checkpoint too"
    refused(capsys, FIT, table, "--out", tmp_path / "n.flow", *checkpoint, words=words)
    (tmp_path / "rows.csv").symlink_to(table)
    words = "would overwrite what is read"
    refused(capsys, FIT, table, "--out", tmp_path / "rows.csv", words=words)


def as_a_process(command: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which CFLOWS is the command; its status is that of the last CFLOWS."""
    line = command.replace("CFLOWS", f"{sys.executable} -W error -m baselines.harness")
    settings = {"capture_output": True, "text": True, "check": False, "timeout": 120}
    return subprocess.run(["bash", "-c", line], **settings)


@pytest.mark.parametrize("unbuffered", ["", "PYTHONUNBUFFERED=1 "])
def test_who_reads_no_further_ends_it_in_silence(unbuffered, model):
    lines = {
        "CFLOWS data list": ("0", "141"),  # 0 where all was written before the reader went
        f"CFLOWS sample {model} -n 50000 --out -": ("141",),
        "CFLOWS sample --help": ("0", "141"),
    }
    for line, statuses in lines.items():
        done = as_a_process(f"{unbuffered}{line} 2>&1 | head -n 1; echo ${{PIPESTATUS[0]}}")
        first, *rest, last = done.stdout.splitlines()
        assert (first != "", rest, done.stderr) == (True, [], "")
        assert last in statuses


def test_a_standard_output_that_is_full_or_closed(model):
    for line in ("CFLOWS data list", f"CFLOWS sample {model} -n 3 --out -"):
        full = as_a_process(f"{line} >/dev/full")
        assert full.returncode == 1
        assert full.stderr.splitlines()[-1] == "cflows: standard output: No space left on device"
    closed = as_a_process(f"CFLOWS sample {model} -n 3 --out - >&-")
    assert (closed.returncode, closed.stdout) == (2, "")
    assert closed.stderr == "cflows: /dev/stdout: standard output is closed; name a file\n"
    assert as_a_process("CFLOWS data list >&- 2>&-").returncode == 0


def test_a_model_is_kept_where_its_disk_is_full(table, temporary, tmp_path, capsys):
    with disks.small(tmp_path / "disk") as disk:
        (disk / "n.flow").write_text("earlier")
        with pytest.raises(SystemExit) as caught:
            run(FIT, table, "--out", disk / "n.flow")
        assert (disk / "n.flow").read_text() == "earlier"
        assert len(list(disk.iterdir())) == 1
    assert caught.value.code == 1
    before, after = capsys.readouterr().err.splitlines()
    assert "make room before the training ends" in before
    assert "n.flow: no space left on device; the model was kept in " in after
    assert after.startswith("cflows: ")
    place = Path(after.rsplit(" ", 1)[1])
    assert place.is_relative_to(temporary)
    assert cflows.load(place).columns == ("a", "b")


def test_a_model_that_nothing_could_keep_is_not_trained(table, temporary, tmp_path, capsys):
    out = tmp_path / "n.flow"
    with disks.limited(4096):
        words = "n.flow: file too large; the model takes about "
        refused(capsys, FIT, table, "--out", out, words=words)
    assert not out.exists()
    assert list(temporary.iterdir()) == []


def test_a_folder_that_goes_while_training(table, temporary, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr("cflows.training.pipeline.fit", losing(folder))
    words = "no such folder to write to; the model was kept in "
    line = refused(capsys, FIT, table, "--out", folder / "n.flow", words=words, status=1)
    assert cflows.load(line.split()[-1]).columns == ("a", "b")


def losing(folder: Path):
    def trained(*arguments, **settings):
        history = cflows.fit(*arguments, **settings)
        folder.rmdir()
        return history

    return trained


def test_a_checkpoint_is_named_where_the_model_has_no_place(
    table, temporary, tmp_path, capsys, monkeypatch
):
    def full(self, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(cflows.Flow, "save", full)
    out, checkpoint = tmp_path / "n.flow", tmp_path / "c.pt"
    for extra, words in (
        ([], "could not be kept in the temporary folder either"),
        (["--checkpoint", checkpoint], f"is kept in {checkpoint}"),
    ):
        refused(capsys, FIT, table, "--out", out, *extra, words=words, status=1)
    assert list(temporary.iterdir()) == []
    monkeypatch.undo()
    assert run(FIT, table, "--out", out, "--checkpoint", checkpoint) == 0
    assert cflows.load(out).columns == ("a", "b")


@pytest.mark.parametrize("name", ["s.csv", "s.npy"])
def test_rows_for_a_full_disk(name, model, tmp_path, capsys):
    with disks.small(tmp_path / "disk") as disk:
        (disk / name).write_text("earlier")
        words = f"{name}: No space left on device"
        refused(capsys, "sample -n 9000", model, "--out", disk / name, words=words)
        assert [path.read_text() for path in disk.iterdir()] == ["earlier"]


def test_a_cell_on_a_full_disk_fails_with_its_reason(table, tmp_path):
    cell = Cell("t.csv", str(table), "", "nice", 1, 0, 2, None, 1e-3)
    out = tmp_path / "out"
    with disks.limited(0):
        result = cells.fail(cell, out, "OSError: [Errno 28] No space left on device")
    assert result["status"] == "failed"
    assert cells.finished(cell, out) is None
    assert list(cell.folder(out).iterdir()) == []


def test_a_report_on_a_read_only_folder(table, tmp_path, capsys):
    out = tmp_path / "out"
    line = "compare --models nice --depths 1 --steps 2 --preprocess whiten --jobs 1 --data"
    compare = line, table, "--out", out
    assert run(*compare) == 0
    (out / "results.csv").unlink()
    (out / "results.csv").symlink_to(tmp_path / "far.csv")
    assert run("report", out) == 0
    assert (out / "results.csv").is_symlink()
    assert (tmp_path / "far.csv").read_text().count("\n") == 4
    capsys.readouterr()
    with disks.read_only(out):
        assert run("report", out) == 0
        printed = capsys.readouterr()
        assert "NICE" in printed.out
        assert "the report, with pictures" not in printed.out
        assert re.fullmatch(r"cflows: .* may not be written to; nothing is written\n", printed.err)
        refused(capsys, *compare, words="manifest.json: this file may not be written to")


def test_a_report_of_which_one_file_is_refused(table, tmp_path, capsys):
    out, kept = tmp_path / "out", tmp_path / "kept"
    kept.mkdir()
    line = "compare --models nice --depths 1 --steps 2 --preprocess whiten --jobs 1 --data"
    compare = line, table, "--out", out
    assert run(*compare) == 0
    (out / "results.csv").unlink()
    (out / "results.csv").symlink_to(kept / "far.csv")
    (out / "report.html").unlink()
    capsys.readouterr()
    with disks.read_only(kept):
        assert run("report", out) == 0
    printed = capsys.readouterr()
    assert f"the report, with pictures: {out / 'report.html'}" in printed.out
    assert (out / "report.html").exists()
    pattern = r"cflows: .*results.csv: .* may not be written to; the other files are written\n"
    assert re.fullmatch(pattern, printed.err)
