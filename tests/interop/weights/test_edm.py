import pickletools

import pytest
import torch
from edm_files import ADM, NETWORKS, SONG, dumps, network, snapshot

from ersde_lit.denoisers import VE, VP, Cosine, Denoiser
from ersde_lit.interop.weights import published
from ersde_lit.interop.weights.edm import read_edm
from ersde_lit.interop.weights.model import write
from ersde_lit.networks import SongUNet
from ersde_lit.training import load
from ersde_lit.training.spec import describe

OURS = {
    "EDMPrecond": (VE(), "edm", "edm"),
    "VPPrecond": (VP(t_min=1e-5), "vp", "eps"),
    "VEPrecond": (VE(), "ve", "score"),
    "iDDPMPrecond": (Cosine(), "iddpm", "eps"),
}


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precond", OURS)
@torch.no_grad()
def test_weights_arrive_bit_for_bit_and_images_are_the_same(tmp_path, precond: str, name: str, classes: int) -> None:
    model_type, kwargs = NETWORKS[name]
    model = network(model_type, kwargs, classes, outputs=6 if precond == "iDDPMPrecond" else 3)
    source = tmp_path / "net.pkl"
    source.write_bytes(dumps(snapshot(model, precond, model_type=model_type, label_dim=classes, **kwargs)))
    report = write(read_edm(source), tmp_path / "net.ckpt")
    module = load(tmp_path / "net.ckpt")
    for denoiser in (module.denoiser, module.ema_denoiser):
        own = denoiser.network.state_dict()
        assert own.keys() == model.state_dict().keys()
        for key, value in model.state_dict().items():
            assert torch.equal(own[key], value[:3] if "conv" in key and len(own[key]) < len(value) else value), key
    assert f"{sum(p.numel() for p in module.denoiser.network.parameters()):,}; all {len(own)} tensors" in report

    process, preconditioning, prediction = OURS[precond]
    reference = Denoiser(model, process, preconditioning, prediction)
    y, lam = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 5.0])
    labels = torch.tensor([2, -1]) if classes else None
    raw = reference.network(  # with its variances, as it was
        y * torch.rsqrt(lam**2 + 0.25).view(-1, 1, 1, 1), lam.log() / 4, labels
    )
    own = module.denoiser.network(y * torch.rsqrt(lam**2 + 0.25).view(-1, 1, 1, 1), lam.log() / 4, labels)
    torch.testing.assert_close(own, raw[:, :3], rtol=0, atol=1e-6 * raw.abs().max().item())
    assert module.spec["process"] == describe(process)
    assert (module.denoiser.preconditioning, module.denoiser.prediction) == (preconditioning, prediction)
    assert (module.denoiser.lam_min, module.denoiser.lam_max) == (reference.lam_min, reference.lam_max)


def test_arguments_come_from_the_file(tmp_path) -> None:
    source = tmp_path / "net.pkl"
    model = network("SongUNet", SONG, 10)
    arguments = {**SONG, "label_dim": 10, "model_type": "SongUNet", "use_fp16": True, "label_dropout": 0.2}
    source.write_bytes(dumps(snapshot(model, "EDMPrecond", sigma_data=0.7, **arguments)))
    imported = read_edm(source)
    module = imported.module()
    assert (module.denoiser.sigma_data, module.label_dropout, module.denoiser.network.label_dropout) == (0.7, 0.2, 0)
    assert module.denoiser.network.spec["init_args"]["dropout"] == 0.1
    source.write_bytes(dumps(snapshot(model, "VEPrecond", sigma_min=0.01, sigma_max=50, **arguments)))
    module = read_edm(source).module()
    assert (module.denoiser.lam_min, module.denoiser.lam_max) == (0.01, 50)
    source.write_bytes(dumps(snapshot(model, "VPPrecond", beta_d=10, beta_min=0.2, epsilon_t=1e-4, **arguments)))
    assert read_edm(source).module().denoiser.process == VP(0.2, 10.2, t_min=1e-4)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickle_protocols(tmp_path, protocol: int) -> None:
    source = tmp_path / "net.pkl"
    model = network("DhariwalUNet", ADM)
    source.write_bytes(dumps(snapshot(model, "EDMPrecond", **ADM), protocol))
    averaged = read_edm(source).averaged
    assert all(torch.equal(averaged[name], value) for name, value in model.state_dict().items())


def test_source_that_was_tampered_with_does_not_matter(tmp_path) -> None:
    canary, source = tmp_path / "canary", tmp_path / "net.pkl"
    model = network("DhariwalUNet", ADM)
    evil = f"open({str(canary)!r}, 'w')\nraise SystemExit\n"
    source.write_bytes(dumps(snapshot(model, "EDMPrecond", evil, **ADM)))
    averaged = read_edm(source).averaged
    assert all(torch.equal(averaged[name], value) for name, value in model.state_dict().items())
    assert not canary.exists()


def test_the_twin_has_the_structure_of_the_published_files() -> None:
    content = dumps(snapshot(network("SongUNet", SONG), "VPPrecond", model_type="SongUNet", **SONG))
    texts = {argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)}
    assert {
        "torch_utils.persistence", "_reconstruct_persistent_obj", "module_src", "torch._utils", "_rebuild_tensor_v2",
        "_rebuild_parameter", "torch.storage", "_load_from_bytes", "OrderedDict", "torch.nn.modules.container",
        "ModuleDict", "scalar", "dtype", "_init_kwargs",
    } <= texts  # fmt: skip


def test_a_published_network_is_named(tmp_path, monkeypatch) -> None:
    source = tmp_path / "net.pkl"
    source.write_bytes(dumps(snapshot(network("SongUNet", SONG), "EDMPrecond", model_type="SongUNet", **SONG)))
    model = read_edm(source)
    net = model.module().denoiser.network
    count, side = sum(p.numel() for p in net.parameters()), net.image_shape[1]
    for key, named in (((SongUNet, side, count), True), ((SongUNet, side, count + 1), False)):
        monkeypatch.setattr(published, "PUBLISHED", {key: "the test's"})
        assert ("as published (the test's)" in model.report(model.module())) is named


@pytest.mark.parametrize(
    ("precond", "arguments", "message"),
    [
        ("EDMPrecond", {"model_type": "ViT"}, "the network 'ViT' is not one of SongUNet, DhariwalUNet"),
        ("OtherPrecond", {}, "holds a 'OtherPrecond' as 'ema': only EDMPrecond"),
        ("EDMPrecond", {"sigma_max": 80}, "limited to noise levels 0 to 80"),
        ("VPPrecond", {"model_type": "DhariwalUNet", "M": 4000}, "a network of 4000 time steps"),
        ("iDDPMPrecond", {"M": 10**12}, "time steps"),
        ("EDMPrecond", {"num_blocks": 2}, "lacks"),
        ("EDMPrecond", {"num_blocks": 10**9}, "describes a larger network than its"),
        ("EDMPrecond", {"channel_mult": [1] * 40}, "img_resolution 8 does not allow 40 levels"),
        ("EDMPrecond", {"model_channels": 10**6}, "larger network than its"),
        ("EDMPrecond", {"label_dim": 5}, "lacks 1 weights, among them 'map_label.weight'"),
        ("EDMPrecond", {"attn_resolutions": []}, "that its network has not"),
        ("EDMPrecond", {"depth": 3}, "does not take the arguments"),
        ("EDMPrecond", {"dropout": "x"}, "does not take the arguments"),
        ("EDMPrecond", {"sigma_data": "x"}, "makes no model"),
        ("EDMPrecond", {"sigma_data": -1.0}, "sigma_data is a standard deviation"),
        ("EDMPrecond", {"nested": {"a": []}}, "no plain value"),
        ("VEPrecond", {"model_type": "DhariwalUNet", "sigma_min": "x"}, "impossible arguments"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path, precond: str, arguments: dict, message: str) -> None:
    source = tmp_path / "net.pkl"
    source.write_bytes(dumps(snapshot(network("DhariwalUNet", ADM), precond, **{**ADM, **arguments})))
    with pytest.raises(ValueError, match=message) as caught:
        read_edm(source).module()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value: float) -> None:
    model = network("DhariwalUNet", ADM)
    model.map_layer0.weight[0, 0] = value
    (tmp_path / "net.pkl").write_bytes(dumps(snapshot(model, "EDMPrecond", **ADM)))
    with pytest.raises(ValueError, match=r"its weight 'map_layer0.weight' is not finite"):
        read_edm(tmp_path / "net.pkl").module()
