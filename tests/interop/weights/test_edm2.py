import pickletools

import pytest
import torch
from edm_files import Persistent, dumps, edm2_model, edm2_snapshot
from torch import nn

from ersde_lit.cli import main
from ersde_lit.denoisers import Denoiser, LogNormal
from ersde_lit.interop.weights.edm import read_edm
from ersde_lit.interop.weights.safetensors_file import export
from ersde_lit.interop.weights.sources import read_source
from ersde_lit.networks.magnitude import MPConv
from ersde_lit.training import load
from ersde_lit.training.spec import describe


def write(path, snapshot, protocol: int = 4):
    path.write_bytes(dumps(snapshot, protocol))
    return path


@pytest.mark.parametrize("classes", [0, 10])
@torch.no_grad()
def test_weights_arrive_bit_for_bit_and_images_are_the_same(tmp_path, capsys, classes: int) -> None:
    network, uncertainty = edm2_model(classes)
    source = write(tmp_path / "net.pkl", edm2_snapshot(network, uncertainty, sigma_data=0.6))
    assert main(["import", str(source), f"--out={tmp_path / 'net.ckpt'}"]) == 0
    module = load(tmp_path / "net.ckpt")
    reference = Denoiser(network.float(), sigma_data=0.6, uncertainty=True).eval()
    reference.uncertainty = uncertainty.float().eval()
    expected = reference.state_dict()
    for denoiser in (module.denoiser, module.ema_denoiser):
        own = denoiser.state_dict()
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], value) for name, value in expected.items())
    parameters = sum(p.numel() for p in network.parameters())
    assert f"{parameters:,}; all {len(expected)} tensors used" in capsys.readouterr().out

    y, lam = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 5.0])
    labels = torch.tensor([2, -1]) if classes else None
    torch.testing.assert_close(module.ema_denoiser(y, lam, labels), reference(y, lam, labels))
    torch.testing.assert_close(module.ema_denoiser.uncertainty(lam), reference.uncertainty(lam))
    assert module.spec["density"] == describe(LogNormal(-0.8, 1.6))
    assert module.denoiser.network.spec["init_args"]["dropout"] == 0.1


@pytest.mark.parametrize("protocol", [3, 5])
def test_pickle_protocols(tmp_path, protocol: int) -> None:
    network, uncertainty = edm2_model()
    averaged = read_edm(write(tmp_path / "net.pkl", edm2_snapshot(network, uncertainty), protocol)).averaged
    assert all(torch.equal(averaged[name], value) for name, value in network.state_dict().items())


def test_it_is_exported_with_its_uncertainty(tmp_path) -> None:
    source = write(tmp_path / "net.pkl", edm2_snapshot(*edm2_model()))
    assert main(["import", str(source), f"--out={tmp_path / 'net.ckpt'}"]) == 0
    checkpoint = torch.load(tmp_path / "net.ckpt", weights_only=True)
    checkpoint["state_dict"]["denoiser.uncertainty.linear.weight"] += 1  # as if trained on
    torch.save(checkpoint, tmp_path / "net.ckpt")
    export(tmp_path / "net.ckpt", tmp_path / "net.safetensors")
    assert main(["import", str(tmp_path / "net.safetensors"), f"--out={tmp_path / 'again.ckpt'}"]) == 0
    before, after = (load(tmp_path / name).state_dict() for name in ("net.ckpt", "again.ckpt"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_twin_has_the_structure_of_the_published_files() -> None:
    content = dumps(edm2_snapshot(*edm2_model()))
    texts = {argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)}
    assert {"torch_utils.persistence", "dnnlib.util", "EasyDict", "_rebuild_parameter", "ModuleDict"} <= texts
    assert b"HalfStorage" in content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_blocks": 2}, "lacks"),
        ({"num_blocks": 10**9}, "describes a larger network than its"),
        ({"model_channels": 10**6}, "larger network than its"),
        ({"channel_mult": [1] * 40}, "img_resolution 8 does not allow 40 levels"),
        ({"label_dim": 5}, "lacks 1 weights, among them 'emb_label.weight'"),
        ({"depth": 3}, "does not take the arguments"),
        ({"clip_act": None}, "'clip_act' is no number"),
        ({"dropout": "x"}, "'dropout' is no number"),
        ({"nested": {"a": []}}, "no plain value"),
        ({"sigma_data": "x"}, "makes no model"),
        ({"modules": {"unet_2": MPConv(1, 1)}}, "has the weight 'unet_2.weight', which is neither"),
        ({"modules": {"unet": nn.ModuleDict()}}, "describes a larger network than its"),
        ({"modules": {"logvar_linear": MPConv(64, 1)}}, r"'linear.weight' is \[1, 64\], in its network \[1, 128\]"),
        ({"modules": {"logvar_linear": MPConv(128, 2)}}, "'linear.weight' is"),
        ({"modules": {"logvar_other": MPConv(1, 1)}}, "has 1 weights that its network has not, among them 'other"),
        ({"encoder": Persistent("VQEncoder", {})}, "its encoder is 'VQEncoder': only StandardRGBEncoder and"),
        ({"encoder": 7}, "its encoder is something else"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_source(write(tmp_path / "net.pkl", edm2_snapshot(*edm2_model(), **arguments))).module()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value: float) -> None:
    network, uncertainty = edm2_model()
    uncertainty.linear.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"its weight 'linear.weight' is not finite"):
        read_source(write(tmp_path / "net.pkl", edm2_snapshot(network, uncertainty))).module()


def test_positional_arguments_are_refused(tmp_path) -> None:
    snapshot = edm2_snapshot(*edm2_model())
    snapshot["ema"].state["_init_args"] = (8, 3, 0)
    with pytest.raises(ValueError, match="the Precond does not say by which keywords it was made"):
        read_source(write(tmp_path / "net.pkl", snapshot))
