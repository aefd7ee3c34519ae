import os
import stat

import pytest
import torch
from jsonargparse import ArgumentParser
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import Noise, network, trainer

from ersde_lit.denoisers import EDA, VP, BiasField, FieldNoise, LogNormal, PairNoise
from ersde_lit.interop.weights.model import fit_config, write
from ersde_lit.interop.weights.safetensors_file import export
from ersde_lit.interop.weights.sources import read_source
from ersde_lit.networks import ClassifierEncoder
from ersde_lit.training import EMA, AdamW, DiffusionModule, NoisyClassifier, load, load_classifier
from ersde_lit.training.averaged import SPEC_KEY


def trained(module, folder):
    runner = trainer(folder, max_epochs=1)
    runner.fit(module, datamodule=Noise())
    runner.save_checkpoint(folder / "trained.ckpt")
    return folder / "trained.ckpt"


def round_trip(checkpoint, folder, **options):
    parts = export(checkpoint, folder / "net.safetensors", **options)
    write(read_source(folder / "net.safetensors"), folder / "again.ckpt")
    return parts


def module(**changes) -> DiffusionModule:
    return DiffusionModule(
        network(dropout=0.1), VP(steps=1000), "vp", "v", 0.4, LogNormal(-1, 2), 0.2, AdamW(1e-2), EMA(30, 0)
    )


def test_weights_and_description_come_back_bit_for_bit(tmp_path) -> None:
    checkpoint = trained(module(), tmp_path)
    assert round_trip(checkpoint, tmp_path) == ["averaged", "raw"]
    before, after = load(checkpoint), load(tmp_path / "again.ckpt")
    assert before.state_dict().keys() == after.state_dict().keys()
    for name, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[name], value), name
    assert {**after.spec, "network": None} == {**before.spec, "network": None}
    assert after.spec["network"]["init_args"].items() >= before.spec["network"]["init_args"].items()
    assert after.images_seen == before.images_seen == 32
    labels = torch.tensor([0, 1])
    assert torch.equal(after.sample(range(2), labels, nfe=4), before.sample(range(2), labels, nfe=4))


LAWS = [FieldNoise(2, 1, 0.1), BiasField(FieldNoise(1, 0, 0.3), 0.02), PairNoise(3.0, 0.1)]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_a_law_of_noise_comes_back_and_is_told(tmp_path, law) -> None:
    before = DiffusionModule(network(num_classes=0), EDA(), "eda", "eda", noise=law)
    for weight in before.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    torch.save({"state_dict": before.state_dict(), SPEC_KEY: before.spec}, tmp_path / "law.ckpt")
    round_trip(tmp_path / "law.ckpt", tmp_path)
    model = read_source(tmp_path / "net.safetensors")
    assert f"process EDA, noise {law}: it restores images\n" in model.report(model.module())
    after = load(tmp_path / "again.ckpt")
    assert after.ema_denoiser.noise == law
    degraded = 2 * torch.rand(2, 1, 4, 4) - 1
    assert torch.equal(after.restore(degraded), before.eval().restore(degraded))
    (tmp_path / "model.yaml").write_text(fit_config(model))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffusionModule, "model", fail_untyped=False)
    given = parser.parse_path(str(tmp_path / "model.yaml"))
    assert parser.instantiate(given).model.denoiser.noise == law


def test_averaged_weights_alone_stand_for_both(tmp_path) -> None:
    checkpoint = trained(module(), tmp_path)
    assert round_trip(checkpoint, tmp_path, averaged_only=True) == ["averaged"]
    before, after = load(checkpoint), load(tmp_path / "again.ckpt")
    for name, value in before.ema_denoiser.state_dict().items():
        assert torch.equal(after.ema_denoiser.state_dict()[name], value)
        assert torch.equal(after.denoiser.state_dict()[name], value)


def test_weights_that_are_equal_are_written_once(tmp_path) -> None:
    checkpoint = trained(module(), tmp_path)
    round_trip(checkpoint, tmp_path, averaged_only=True)
    assert export(tmp_path / "again.ckpt", tmp_path / "once.safetensors") == ["averaged"]
    with safe_open(tmp_path / "once.safetensors", "pt") as file:
        assert {name.partition(".")[0] for name in file.keys()} == {"averaged"}  # noqa: SIM118


def test_double_precision_is_kept(tmp_path) -> None:
    checkpoint = torch.load(trained(module(), tmp_path), weights_only=True)
    checkpoint["state_dict"] = {name: value.double() for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, tmp_path / "double.ckpt")
    round_trip(tmp_path / "double.ckpt", tmp_path)
    assert {value.dtype for value in load(tmp_path / "again.ckpt").state_dict().values()} == {torch.float64}


def test_half_precision_becomes_single(tmp_path) -> None:
    checkpoint = torch.load(trained(module(), tmp_path), weights_only=True)
    checkpoint["state_dict"] = {name: value.half() for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, tmp_path / "half.ckpt")
    round_trip(tmp_path / "half.ckpt", tmp_path)
    stored = torch.load(tmp_path / "again.ckpt", weights_only=True)["state_dict"]
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(stored[name], value.float())


def test_classifiers(tmp_path) -> None:
    encoder = ClassifierEncoder((1, 4, 4), 3, width=8, multipliers=(1, 2), blocks=1, attention=(), head_width=8)
    checkpoint = trained(NoisyClassifier(encoder, VP(), 0.4, preconditioning="vp"), tmp_path)
    assert round_trip(checkpoint, tmp_path) == ["network"]
    before, after = load_classifier(checkpoint), load_classifier(tmp_path / "again.ckpt")
    averages = before.ema_network.state_dict()
    assert all(torch.equal(after.ema_network.state_dict()[name], value) for name, value in averages.items())
    assert {**after.spec, "network": None} == {**before.spec, "network": None}


def test_others_may_read_it(tmp_path) -> None:
    export(trained(module(), tmp_path), tmp_path / "net.safetensors")
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("net.safetensors", "plain")}
    assert len(modes) == 1


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch) -> None:
    checkpoint = trained(module(), tmp_path)

    def full(*args, **kwargs) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ersde_lit.interop.weights.safetensors_file.save_file", full)
    with pytest.raises(OSError, match="disk full"):
        export(checkpoint, tmp_path / "net.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trained.ckpt"]


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no checkpoint at"):
        export(tmp_path / "absent.ckpt", tmp_path / "net.safetensors")
    torch.save({"ersde_lit": {}, "state_dict": {"weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="holds 'weight', which is no weight of a network"):
        export(tmp_path / "other.ckpt", tmp_path / "net.safetensors")


def test_a_header_of_any_length_is_known(tmp_path) -> None:
    """Some lengths begin with the byte with which pickles do."""
    export(trained(module(), tmp_path), tmp_path / "net.safetensors")
    with safe_open(tmp_path / "net.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    firsts = set()
    for pad in range(256):
        save_file(tensors, tmp_path / "padded", metadata | {"note": "x" * pad})
        first = (tmp_path / "padded").read_bytes()[0]
        if first not in firsts:
            assert len(read_source(tmp_path / "padded").averaged) == len(tensors) // 2
        firsts.add(first)
    assert 0x80 in firsts


def test_a_pipe_is_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        read_source(tmp_path / "pipe")
