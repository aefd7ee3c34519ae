import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import Noise, network, trainer

from ersde_lit.denoisers import EDA, VP, FieldNoise, LogNormal
from ersde_lit.errors import UserError
from ersde_lit.interop.weights.safetensors_file import export, read_safetensors, read_tensors
from ersde_lit.networks import ClassifierEncoder, Network
from ersde_lit.solvers import DEIS, ERSDE, SavedTables, default, grids
from ersde_lit.training import EMA, AdamWConfig, AtomicCheckpointIO, DiffusionModule, NoisyClassifier, carry, load
from ersde_lit.training.averaged import SPEC_KEY
from ersde_lit.training.checkpoint import is_whole, read
from ersde_lit.training.spec import build, describe


class Foreign(Network):
    """A network of somebody else's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.image_shape, self.num_classes = (channels, 4, 4), 0
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, c_noise, labels=None, augment=None):
        return self.weight * x


def saved(module: DiffusionModule, folder):
    runner = trainer(folder, max_epochs=1)
    runner.fit(module, datamodule=Noise())
    path = folder / "last.ckpt"
    runner.save_checkpoint(path)
    return path


def test_a_checkpoint_alone_gives_the_module_back(tmp_path) -> None:
    module = DiffusionModule(
        network(dropout=0.1), VP(steps=1000), "vp", "v", 0.4, LogNormal(-1, 2), 0.2, AdamWConfig(1e-2), EMA(30, 0)
    )
    twin = load(saved(module, tmp_path))
    assert twin.spec == module.spec
    assert twin.images_seen == 32
    for name, value in module.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(twin.sample(range(3), labels, nfe=5), module.sample(range(3), labels, nfe=5))
    assert not twin.training


def test_raw_and_averaged_weights_are_both_kept(tmp_path) -> None:
    module = DiffusionModule(network(), optimizer=AdamWConfig(1e-2), ema=EMA(100, 0))
    twin = load(saved(module, tmp_path))
    raw, averaged = twin.denoiser.network.enter.weight, twin.ema_denoiser.network.enter.weight
    assert not torch.equal(raw, averaged)


class Seeded(DiffusionModule):
    """Its noise is a function of the step, as if the global generator had been in a checkpoint."""

    def on_train_batch_start(self, batch, batch_idx) -> None:
        torch.manual_seed(self.global_step)


def test_training_goes_on_from_a_checkpoint(tmp_path) -> None:
    recipe = AdamWConfig(1e-2, warmup=20, decay=0.5)
    whole = Seeded(network(), optimizer=recipe)
    halfway = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, enable_checkpointing=True, callbacks=[halfway]).fit(whole, datamodule=Noise())
    resumed = Seeded(network(), optimizer=recipe)
    trainer(tmp_path).fit(resumed, datamodule=Noise(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.images_seen == whole.images_seen == 64
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"state": torch.ones(2)}, path)
    kept = path.read_bytes()

    def torn(self, checkpoint, target, storage_options=None):
        Path(target).write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr("lightning.pytorch.plugins.io.TorchCheckpointIO.save_checkpoint", torn)
    with pytest.raises(OSError, match="disk full"):
        io.save_checkpoint({"state": torch.zeros(2)}, path)
    assert path.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [path]


def test_any_damage_is_noticed(tmp_path) -> None:
    path = saved(DiffusionModule(network()), tmp_path)
    assert is_whole(path)
    content, weights = path.read_bytes(), read(path)["state_dict"]
    for place in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        if is_whole(path):  # a bit that nobody reads, between two records
            assert all(torch.equal(value, weights[name]) for name, value in read(path)["state_dict"].items())
    for torn in (b"", content[:100], content[: len(content) // 2], content[:-1]):
        path.write_bytes(torn)
        assert not is_whole(path)
    assert not is_whole(tmp_path / "absent.ckpt")


def test_missing_damaged_and_foreign_files_are_refused(tmp_path) -> None:
    whole = saved(DiffusionModule(network()), tmp_path)
    with pytest.raises(ValueError, match="no checkpoint at"):
        load(tmp_path / "absent.ckpt")
    data = whole.read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 10):
        (tmp_path / "cut.ckpt").write_bytes(data[:length])
        with pytest.raises(ValueError, match="damaged, truncated or not a checkpoint"):
            load(tmp_path / "cut.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="not one that ersde_lit's fit wrote"):
        load(tmp_path / "other.ckpt")


def test_numpy_numbers_are_kept_as_plain_ones(tmp_path) -> None:
    module = DiffusionModule(network(), sigma_data=np.float64(0.4), optimizer=AdamWConfig(np.float32(0.5)))
    assert load(saved(module, tmp_path)).spec["sigma_data"] == 0.4


def test_training_does_not_go_on_from_another_model_or_a_damaged_file(tmp_path) -> None:
    path = saved(DiffusionModule(network()), tmp_path)

    def go_on(module: DiffusionModule) -> None:
        trainer(tmp_path, plugins=[AtomicCheckpointIO()]).fit(module, datamodule=Noise(), ckpt_path=path)

    with pytest.raises(ValueError, match=r"of another model: process is .*VE there and .*VP here"):
        go_on(DiffusionModule(network(), VP(), "vp", "eps"))
    with pytest.raises(ValueError, match=r"of another model: network\.width is 8 there and 16"):
        go_on(DiffusionModule(network(width=16)))
    go_on(DiffusionModule(network()))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged, truncated"):
        go_on(DiffusionModule(network()))


def test_averages_go_on_after_loading(tmp_path) -> None:
    module = load(saved(DiffusionModule(network()), tmp_path))
    steps = []
    module.ema = type("Spy", (), {"update": lambda self, a, c, images, seen: steps.append((images, seen))})()
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=Noise())
    assert steps[0] == (8, 40)


def test_weights_that_do_not_fit_are_refused(tmp_path) -> None:
    path = saved(DiffusionModule(network()), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["ersde_lit"]["network"]["init_args"]["width"] = 16
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="cannot be rebuilt"):
        load(path)


def test_nothing_hostile_is_executed(tmp_path) -> None:
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return open, (str(canary), "w")

    torch.save({"ersde_lit": Hostile(), "state_dict": {}}, tmp_path / "hostile.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Hostile()))
    for name in ("hostile.ckpt", "plain.ckpt"):
        with pytest.raises(ValueError, match="damaged, truncated or not"):
            load(tmp_path / name)
    assert not canary.exists()


def test_classes_from_elsewhere_need_trust(tmp_path) -> None:
    spec = describe(Foreign(1))
    with pytest.raises(ValueError, match="not part of ersde_lit"):
        build(spec)
    assert isinstance(build(spec, trust=True), Network)
    with pytest.raises(ValueError, match="neither a Network nor a dataclass"):
        build({"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}, trust=True)
    with pytest.raises(ValueError, match="neither a Network nor a dataclass"):
        build({"class_path": "ersde_lit.cli.main", "init_args": {"argv": []}})
    with pytest.raises(ValueError, match="there is no class"):
        build({"class_path": "ersde_lit.networks.Nothing", "init_args": {}})
    with pytest.raises(ValueError, match="does not take the arguments"):
        build({"class_path": "ersde_lit.networks.UNet", "init_args": {"depth": 3}})


def test_what_plain_data_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot be kept in a checkpoint"):
        describe(torch.ones(1))


def test_checkpoints_older_than_a_setting_are_read(tmp_path) -> None:
    path = saved(DiffusionModule(network(), VP(), "vp", "eps"), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["ersde_lit"]["process"]["init_args"]["t_min"]
    torch.save(checkpoint, path)
    assert load(path).denoiser.process == VP()

    def go_on(process: VP, **changes) -> None:
        module = DiffusionModule(network(**changes), process, "vp", "eps")
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=Noise(), ckpt_path=path)

    go_on(VP())
    go_on(VP(), dropout=0.0, augment_dim=0)  # the defaults, said or not
    with pytest.raises(ValueError, match=r"of another model: process\.t_min is 0\.001 there"):
        go_on(VP(t_min=1e-5))
    with pytest.raises(ValueError, match=r"of another model: network\.dropout"):
        go_on(VP(), dropout=0.1)


def renamed(path: Path, how) -> None:
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] = {how(name): weight for name, weight in checkpoint["state_dict"].items()}
    torch.save(checkpoint, path)


@pytest.mark.parametrize(
    "how",
    [
        lambda name: name.replace("network.", "network._orig_mod."),
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}".replace("network.", "network.module."),
    ],
    ids=["compiled", "distributed", "both"],
)
def test_names_that_wrappers_gave_are_read(tmp_path, how) -> None:
    module = DiffusionModule(network())
    path = saved(module, tmp_path)
    renamed(path, how)
    twin = load(path)
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in module.state_dict().items())
    trainer(tmp_path, max_epochs=2).fit(DiffusionModule(network()), datamodule=Noise(), ckpt_path=path)
    export(path, tmp_path / "net.safetensors")
    assert {name.partition(".")[0] for name in read_tensors(tmp_path / "net.safetensors")[1]} == {"averaged", "raw"}
    read_safetensors(tmp_path / "net.safetensors").module()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"denoiser.network.enter.bias": None}, r"lacks 1 weights, among them 'denoiser.network.enter.bias', which is"),
        ({"denoiser.more": torch.ones(3)}, r"'denoiser.more', which is \[3\]"),
        ({"denoiser.network.enter.bias": torch.ones(9)}, r"'denoiser.network.enter.bias' is \[9\], in its network"),
    ],
)
def test_the_weight_that_does_not_fit_is_named(tmp_path, change: dict, message: str) -> None:
    path = saved(DiffusionModule(network()), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    weights = {**checkpoint["state_dict"], **change}
    checkpoint["state_dict"] = {name: weight for name, weight in weights.items() if weight is not None}
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_epochs=2).fit(DiffusionModule(network()), datamodule=Noise(), ckpt_path=path)


def test_torchs_older_format_is_read(tmp_path) -> None:
    module = DiffusionModule(network())
    path = saved(module, tmp_path)
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    twin = load(path)
    assert twin.spec == module.spec
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in module.state_dict().items())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged, truncated"):
        load(path)


def test_class_paths_from_before_a_renaming_are_read(tmp_path) -> None:
    path = saved(module := DiffusionModule(network(), optimizer=AdamWConfig(3e-3)), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["ersde_lit"]["optimizer"]["class_path"] = "ersde_lit.training.optimizer.AdamW"
    torch.save(checkpoint, path)
    assert read(path)["ersde_lit"]["optimizer"] == module.spec["optimizer"]
    for made in (load(path).recipe, build(checkpoint["ersde_lit"]["optimizer"])):
        assert (type(made), made.lr) == (AdamWConfig, 3e-3)


TABLES = SavedTables({n: ERSDE(2, "sde").tableau(grids.edm(n)) for n in (3, 5)}, {"network": "0123456789abcdef"})


def test_tables_that_a_checkpoint_carries_are_its_default(tmp_path) -> None:
    path = saved(DiffusionModule(network(), optimizer=AdamWConfig(1e-2), ema=EMA(100, 0)), tmp_path)
    plain = read(path)
    carry(path, SavedTables({4: DEIS().tableau(grids.edm(4))}), path)  # is replaced
    carry(path, TABLES, path)
    content = read(path)
    assert {key: value for key, value in content.items() if key != "sampler_tables"}.keys() == plain.keys()
    assert torch.load(path, weights_only=True)["sampler_tables"] == TABLES.plain()
    module = load(path)
    assert module.tables == TABLES
    labels = torch.tensor([0, 1, 2])
    for nfe in (3, 5):
        own = module.sample(range(3), labels, nfe=nfe)
        assert torch.equal(own, module.sample(range(3), labels, solver=ERSDE(2, "sde"), nfe=nfe))
        assert torch.equal(own, module.sample(range(3), labels, solver=TABLES, nfe=nfe))
        assert not torch.equal(own, module.sample(range(3), labels, solver="default", nfe=nfe))
    assert torch.equal(
        module.sample(range(3), labels, nfe=4), module.sample(range(3), labels, solver=default(4), nfe=4)
    )


def test_training_leaves_tables_behind_and_validation_keeps_them(tmp_path) -> None:
    path = saved(DiffusionModule(network()), tmp_path)
    carry(path, TABLES, path)
    module = load(path)
    trainer(tmp_path).validate(module, datamodule=Noise(), verbose=False)
    assert module.tables == TABLES
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(DiffusionModule(network()), datamodule=Noise(), ckpt_path=path)
    assert runner.lightning_module.images_seen == 64
    runner.save_checkpoint(tmp_path / "on.ckpt")
    assert "sampler_tables" not in read(tmp_path / "on.ckpt")
    assert load(tmp_path / "on.ckpt").tables is None


def test_tables_that_are_damaged_or_of_a_classifier_are_refused_in_one_line(tmp_path) -> None:
    path = saved(DiffusionModule(network()), tmp_path)
    AtomicCheckpointIO().save_checkpoint(read(path) | {"sampler_tables": [1]}, path)
    with pytest.raises(ValueError, match="cannot be rebuilt: it holds no tables") as error:
        load(path)
    assert "\n" not in str(error.value)
    classifier = NoisyClassifier(ClassifierEncoder((1, 4, 4), 3, width=8, multipliers=(1,), blocks=1))
    content = {"state_dict": classifier.state_dict()}
    classifier.on_save_checkpoint(content)
    torch.save(content, tmp_path / "classifier.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of a denoiser"):
        carry(tmp_path / "classifier.ckpt", TABLES, tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()


def test_no_tables_for_a_model_that_restores(tmp_path) -> None:
    settings = {"process": EDA(), "preconditioning": "eda", "prediction": "eda", "noise": FieldNoise()}
    module = DiffusionModule(network(num_classes=0), **settings)
    torch.save({"state_dict": module.state_dict(), SPEC_KEY: module.spec}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="restores images"):
        carry(tmp_path / "x.ckpt", TABLES, tmp_path / "y.ckpt")
    assert not (tmp_path / "y.ckpt").exists()
