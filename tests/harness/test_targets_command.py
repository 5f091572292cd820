"""``cflows targets``: trained, told, gone on with."""

from __future__ import annotations

import json

from command_line import refused, run

from baselines.harness.report.targets import lines


def result(**settings):
    told = {
        "target": "gaussian10",
        "model": "realnvp",
        "way": "reverse",
        "seed": 0,
        "log_z": 3.0,
        "log_z_error": 0.1,
        "log_normaliser": 3.1,
        "ess": 0.5,
        "ess_per_second": 1e4,
        "pareto_k": 0.3,
        "training_seconds": 60.0,
    }
    return told | settings


def test_a_log_z_beyond_its_error_has_a_mark():
    (near,), (far,) = lines([result()]), lines([result(log_z=4.0)])
    assert near[4:7] == ("3.000 ± 0.200", "-0.100", "50 %")
    assert far[5] == "+0.900 *"
    ((*_, reason, _, _, _, _, _),) = lines([{**result(), "error": "ValueError: no"}])
    assert reason == "ValueError: no"


def test_a_first_look_and_its_second_call(tmp_path, capsys):
    out = tmp_path / "out"
    line = "targets --quick --budget 1 --data gaussian10 --jobs 1 --out"
    assert run(line, out, "--models", "realnvp", "ffjord-matching") == 0
    first = capsys.readouterr().out
    assert "3 cells on 1 process(es)" in first
    assert "gaussian10, ffjord-matching, annealed, seed 0: log Z - truth" in first
    assert (out / "targets.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "targets.md").read_text()
    assert table.count("| gaussian10") == 3
    kept = {path: path.read_bytes() for path in out.rglob("result.json")}
    assert run(line, out, "--models", "realnvp", "ffjord-matching") == 0
    assert "to train" not in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("result.json")} == kept
    for content in kept.values():
        told = json.loads(content)
        assert abs(told["log_z"] - told["log_normaliser"]) < 1


def test_a_failure_is_a_result_and_is_tried_again(tmp_path, capsys, monkeypatch):
    (tmp_path / "broken.py").write_text(
        "def flow(features, depth):\n    raise ValueError('no such flow')\n"
    )
    model = f"{tmp_path / 'broken.py'}:flow"
    line = "targets --quick --budget 1 --data gaussian10 --by reverse --jobs 1 --out"
    for _ in range(2):
        assert run(line, tmp_path / "out", "--models", model) == 1
        told = capsys.readouterr().out
        assert "1 to train" in told
        assert "ValueError: no such flow" in told


def test_mistakes_are_one_line(capsys, tmp_path):
    refused(capsys, "targets --data moon --out", tmp_path, words="no target is called 'moon'")
    refused(capsys, "targets --models mfa --out", tmp_path, words="did you mean")
