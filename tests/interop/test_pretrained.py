"""Models saved to folders load again, and repositories of the hub are asked for by name."""

import pytest
import torch
from tiny import network

from ersde_lit.interop.pretrained import from_pretrained, save_pretrained
from ersde_lit.interop.weights.sources import read_source, read_weights
from ersde_lit.solvers import SavedTables, UniPC, grids
from ersde_lit.training import DiffusionModule


def model() -> DiffusionModule:
    torch.manual_seed(0)
    made = DiffusionModule(network(dropout=0.1), sigma_data=0.4, prediction="x0")
    torch.nn.init.normal_(made.denoiser.network.leave[-1].weight)  # averages differ from raw weights
    return made


def test_a_model_comes_back_from_its_folder(tmp_path) -> None:
    before = model()
    before.tables = SavedTables({4: UniPC().tableau(grids.edm(4))}, {"scores": [0.1]})
    assert save_pretrained(before, tmp_path / "a/b") == tmp_path / "a/b/model.safetensors"
    after = from_pretrained(tmp_path / "a/b")
    assert not after.training
    assert after.spec["sigma_data"] == 0.4
    assert after.tables == before.tables
    assert all(torch.equal(weight, before.state_dict()[name]) for name, weight in after.state_dict().items())
    assert from_pretrained(tmp_path / "a/b/model.safetensors").spec == after.spec
    assert read_source(tmp_path / "a/b").settings["prediction"] == "x0"
    assert read_weights(tmp_path / "a/b")["state_dict"].keys() == before.state_dict().keys()


def test_a_folder_is_not_written_over_and_must_hold_a_model(tmp_path) -> None:
    save_pretrained(model(), tmp_path)
    with pytest.raises(ValueError, match="exists"):
        save_pretrained(model(), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no model\.safetensors"):
        from_pretrained(tmp_path / "empty")


def test_a_repository_is_downloaded_by_name_and_revision(tmp_path, monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    path, asked = save_pretrained(model(), tmp_path / "cached"), []
    monkeypatch.setattr(hub, "hf_hub_download", lambda *args, **kwargs: asked.append((args, kwargs)) or str(path))
    assert from_pretrained("somebody/digits", revision="v2").denoiser.prediction == "x0"
    assert asked == [(("somebody/digits", "model.safetensors"), {"revision": "v2"})]


def test_a_repository_that_cannot_be_read_is_refused_in_a_line(monkeypatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def offline(*args, **kwargs):
        raise hub.errors.LocalEntryNotFoundError("no\nnetwork")

    with pytest.raises(ValueError, match="neither a folder nor a repository"):
        from_pretrained("not a name!")
    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(ValueError, match=r"somebody/absent is neither .*: no network"):
        from_pretrained("somebody/absent")
