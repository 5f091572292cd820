from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn
from zoo import perturbed

import cflows
from baselines import MAF
from cflows import FFJORD, MLP, Affine, Chain, Flow, LoadError, ODEBijector, ResidualField
from cflows.core import registry


@cflows.register
class Damped(nn.Module):
    """A user's own field."""

    context_features = 0

    def __init__(self, features: int, *, rate: float = 1.0, **rest: object) -> None:
        super().__init__()
        self.features = features
        self.rate = nn.Parameter(torch.tensor(rate))

    def forward(self, t, x, context):
        return -self.rate * x


class Unknown(nn.Module):
    features, context_features = 2, 0

    def forward(self, t, x, context):
        return x


@pytest.fixture
def saved(tmp_path):
    perturbed(MAF(3, layers=1, hidden=(8,))).save(tmp_path / "flow.pt")
    return tmp_path / "flow.pt"


def rewritten(path, **changes):
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)
    return path


def test_a_file_is_what_the_module_says(saved):
    content = torch.load(saved, weights_only=True)
    assert content.keys() == {"format", "configuration", "state"}
    configuration = json.loads(content["configuration"])
    assert configuration["class"] == "baselines.MAF"
    assert configuration["arguments"]["hidden"] == [8]


def test_a_file_from_before_ffjords_defaults_keeps_its_field(tmp_path):
    before = FFJORD(2, hidden=(64, 64)).eval()
    before.save(tmp_path / "flow.pt")
    configuration = json.loads(torch.load(tmp_path / "flow.pt")["configuration"])
    del configuration["arguments"]["hidden"]
    rewritten(tmp_path / "flow.pt", configuration=json.dumps(configuration))
    x = torch.randn(5, 2)
    assert torch.equal(cflows.load(tmp_path / "flow.pt").log_prob(x), before.log_prob(x))
    for flow in (FFJORD(2), FFJORD(17)):
        flow.save(tmp_path / "flow.pt")
        again = cflows.load(tmp_path / "flow.pt")
        assert [*again.state_dict()] == [*flow.state_dict()]
    assert isinstance(FFJORD(8).bijector.parts[0].field, ResidualField)
    assert isinstance(FFJORD(17).bijector.parts[0].field, MLP)
    assert FFJORD(2, layer="film").bijector.parts[0].field.hidden == (64, 64)


def test_registered_parts_of_the_users_own(tmp_path):
    flow = Flow(Chain(ODEBijector(Damped(2, rate=0.5, note="x")), Affine([0.1, 0.2], [3.0, 1 / 3])))
    flow.eval().save(tmp_path / "flow.pt")
    again = cflows.load(tmp_path / "flow.pt")
    x = torch.randn(3, 2)
    assert torch.equal(flow.log_prob(x), again.log_prob(x))


def test_unregistered_parts_are_refused_when_saving(tmp_path):
    with pytest.raises(TypeError, match=r"call cflows.register\(Unknown\)") as caught:
        Flow(ODEBijector(Unknown())).save(tmp_path / "flow.pt")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_subclass_does_not_pass_for_its_parent(tmp_path):
    class Mine(MAF):
        def __init__(self):
            super().__init__(2, layers=1)

    with pytest.raises(TypeError, match=r"register\("):
        Mine().save(tmp_path / "flow.pt")


def test_classes_can_be_given_to_load(tmp_path, monkeypatch):
    Flow(ODEBijector(Damped(2))).save(tmp_path / "flow.pt")
    tag = f"{Damped.__module__}.Damped"
    monkeypatch.delitem(registry.CLASSES, tag)
    with pytest.raises(LoadError, match="needs the class") as caught:
        cflows.load(tmp_path / "flow.pt")
    assert "\n" not in str(caught.value)
    assert isinstance(cflows.load(tmp_path / "flow.pt", classes={tag: Damped}), Flow)


def test_no_module_is_imported_because_a_file_says_so(saved, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    configuration = json.dumps({"class": "evil.Flow", "arguments": {}})
    with pytest.raises(LoadError, match=r"evil\.Flow"):
        cflows.load(rewritten(saved, configuration=configuration))


def test_a_name_of_ours_that_is_no_class_of_ours(saved):
    configuration = json.dumps({"class": "cflows.os", "arguments": {}})
    with pytest.raises(LoadError, match=r"cflows\.os"):
        cflows.load(rewritten(saved, configuration=configuration))


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "text"])
def test_damaged_files(saved, damage):
    whole = saved.read_bytes()
    saved.write_bytes(
        {"cut": whole[: len(whole) // 2], "noise": bytes(len(whole)), "empty": b"", "text": b"hi"}[
            damage
        ]
    )
    with pytest.raises(LoadError, match="damaged") as caught:
        cflows.load(saved)
    assert "\n" not in str(caught.value)


def test_pickles_are_not_run(saved, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    torch.save({"format": 1, "configuration": "", "state": Payload()}, saved)
    with pytest.raises(LoadError):
        cflows.load(saved)
    assert not (tmp_path / "written").exists()


def test_missing_foreign_and_later_files(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        cflows.load(tmp_path / "nothing.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(LoadError, match="not written by this package"):
        cflows.load(tmp_path / "list.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(LoadError, match="holds no flow"):
        cflows.load(tmp_path / "other.pt")
    with pytest.raises(LoadError, match="update cflows"):
        cflows.load(rewritten(saved, format=99))


def test_a_state_that_does_not_fit(saved):
    state = torch.load(saved, weights_only=True)["state"]
    state.popitem()
    with pytest.raises(LoadError, match="does not fit") as caught:
        cflows.load(rewritten(saved, state=state))
    assert "\n" not in str(caught.value)


def test_a_failed_write_loses_nothing(saved, monkeypatch):
    before = saved.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        MAF(3).save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["flow.pt"]
