import math

import lightning.pytorch as pl
import pytest
import torch
from tiny import Noise, network, trainer
from torch.utils.data import DataLoader, TensorDataset

from ersde_lit.denoisers import VP, Denoiser, LogNormal, UniformTime
from ersde_lit.denoisers.guidance import ClassifierGuidance
from ersde_lit.networks import ClassifierEncoder, Network
from ersde_lit.sampling.generate import generate
from ersde_lit.solvers import ERSDE, TableSampler
from ersde_lit.training import (
    EMA,
    AdamWConfig,
    AtomicCheckpointIO,
    DiffusionModule,
    NoisyClassifier,
    PowerEMA,
    load,
    load_classifier,
    reconstruct,
)


def encoder(**changes) -> ClassifierEncoder:
    arguments = {"image_shape": (1, 4, 4), "num_classes": 3, "width": 8, "multipliers": (1, 2), "blocks": 1,
                 "attention": (1,), "head_width": 8}  # fmt: skip
    return ClassifierEncoder(**{**arguments, **changes})


class Spy(Network):
    """Returns what it was given, as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.image_shape, self.num_classes = (1, 1, 2), 2

    def forward(self, x, c_noise, labels=None, augment=None):
        self.x, self.c_noise = x, c_noise
        return x.flatten(1)


class Foreign(ClassifierEncoder):
    """A network of somebody else's."""


def saved(module: pl.LightningModule, folder):
    runner = trainer(folder, max_epochs=1)
    runner.fit(module, datamodule=Noise())
    path = folder / "last.ckpt"
    runner.save_checkpoint(path)
    return path


def test_it_says_log_probabilities_of_scaled_images() -> None:
    classifier = NoisyClassifier(Spy(), sigma_data=0.5)
    spy = classifier.ema_network
    y, lam = torch.randn(5, 1, 1, 2), torch.tensor(3.0)
    log_p = classifier(y, lam)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(5))
    torch.testing.assert_close(spy.x, y / math.sqrt(9.25))
    torch.testing.assert_close(spy.c_noise, torch.full((5,), math.log(3) / 4))
    torch.testing.assert_close(classifier(y, lam.expand(5)), log_p)


def test_it_learns_the_posterior_of_gaussian_classes(tmp_path) -> None:
    # Class k is N(+-0.5, 0.25^2) in each of 16 pixels: the exact log odds are m . y / (0.25^2 + lam^2), m = 1 each.
    pl.seed_everything(0, verbose=False)
    labels = torch.arange(2048) % 2
    images = (labels.float() - 0.5).view(-1, 1, 1, 1) + 0.25 * torch.randn(2048, 1, 4, 4)
    classifier = NoisyClassifier(
        encoder(num_classes=2), density=LogNormal(0.5, 1.0), optimizer=AdamWConfig(1e-2, decay=0.5)
    )
    loader = DataLoader(TensorDataset(images, labels), 128, shuffle=True)
    trainer(tmp_path, max_epochs=10).fit(classifier, loader)
    for lam in (0.7, 1.5, 3.0):
        y = images + lam * torch.randn_like(images)
        exact = torch.sigmoid(y.sum((1, 2, 3)) / (0.25**2 + lam**2))
        learnt = classifier.eval()(y, torch.tensor(lam))[:, 1].exp()
        assert (learnt - exact).abs().mean() < 0.06
        assert exact.std() > 0.2  # there is something to learn at each of them


def test_validation_looks_at_fixed_levels_and_fixed_noise(tmp_path) -> None:
    classifier = NoisyClassifier(encoder())
    first, second = (trainer(tmp_path).validate(classifier, datamodule=Noise(), verbose=False)[0] for _ in range(2))
    assert first == second
    assert set(first) == {"val/loss", "val/accuracy"}
    assert 0 <= first["val/accuracy"] <= 1
    torch.testing.assert_close(first["val/loss"], math.log(3), rtol=0.3, atol=0)  # it knows nothing yet


def test_a_checkpoint_alone_gives_the_classifier_back(tmp_path) -> None:
    module = NoisyClassifier(encoder(dropout=0.1), VP(steps=1000), 0.4, UniformTime(), AdamWConfig(1e-2))
    twin = load_classifier(saved(module, tmp_path))
    assert twin.spec == module.spec
    assert twin.images_seen == 32
    assert not twin.training
    averages = twin.ema_network.state_dict()
    assert any(not torch.equal(weight, averages[name]) for name, weight in twin.network.state_dict().items())
    y = torch.randn(6, 1, 4, 4)
    assert torch.equal(twin(y, torch.tensor(0.7)), module.eval()(y, torch.tensor(0.7)))


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path) -> None:
    def fresh() -> NoisyClassifier:
        torch.manual_seed(0)
        return NoisyClassifier(encoder(dropout=0.1))

    whole, resumed = fresh(), fresh()
    trainer(tmp_path, max_epochs=2).fit(whole, datamodule=Noise())
    torch.manual_seed(1)
    trainer(tmp_path, max_epochs=2).fit(resumed, datamodule=Noise(), ckpt_path=saved(fresh(), tmp_path))
    assert resumed.images_seen == whole.images_seen == 64
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_what_an_image_is_trained_with_does_not_depend_on_how_a_step_is_shared(tmp_path) -> None:
    torch.manual_seed(0)
    whole = NoisyClassifier(encoder())
    shared = NoisyClassifier(encoder())
    shared.load_state_dict(whole.state_dict())
    trainer(tmp_path, max_epochs=1).fit(whole, datamodule=Noise())
    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2).fit(shared, datamodule=Noise(batch_size=4))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_checkpoints_of_denoisers_and_classifiers_are_not_confused(tmp_path) -> None:
    denoiser = saved(DiffusionModule(network()), tmp_path)
    with pytest.raises(ValueError, match="holds no noisy classifier"):
        load_classifier(denoiser)
    classifier = saved(NoisyClassifier(encoder()), tmp_path)
    with pytest.raises(ValueError, match="noisy_classifier"):
        load(classifier)


def test_what_is_no_classifier_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no checkpoint at"):
        load_classifier(tmp_path / "absent.ckpt")
    path = saved(NoisyClassifier(encoder()), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["ersde_lit"]["noisy_classifier"]["network"]["init_args"]["width"] = 16
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="cannot be rebuilt"):
        load_classifier(tmp_path / "other.ckpt")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged, truncated"):
        load_classifier(path)


def test_networks_from_elsewhere_need_trust(tmp_path) -> None:
    path = saved(NoisyClassifier(Foreign((1, 4, 4), 3, width=8, multipliers=(1,), attention=())), tmp_path)
    with pytest.raises(ValueError, match="not part of ersde_lit"):
        load_classifier(path)


def test_settings_and_data_that_do_not_fit_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="at least 2 classes, not 0"):
        NoisyClassifier(network(num_classes=0))
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        encoder(num_classes=1)
    with pytest.raises(ValueError, match="multiple of 8"):
        encoder(width=12)
    with pytest.raises(ValueError, match="image_shape is"):
        encoder(image_shape=(4, 4))
    with pytest.raises(ValueError, match="standard deviation"):
        NoisyClassifier(encoder(), sigma_data=0.0)
    with pytest.raises(ValueError, match=r"3 classes, the network 4"):
        trainer(tmp_path).fit(NoisyClassifier(encoder(num_classes=4)), datamodule=Noise())


def test_it_guides_a_denoiser_through_generate() -> None:
    denoiser, classifier = Denoiser(network(num_classes=0)), NoisyClassifier(encoder())
    guided, plain = (ClassifierGuidance(denoiser, classifier, scale, (0.1, 10.0)) for scale in (5.0, 0.0))
    images, others = (next(generate(d, TableSampler(ERSDE(2)), range(4), nfe=6)) for d in (guided, plain))
    assert images.labels is not None
    assert images.images.isfinite().all()
    assert not torch.allclose(images.images, others.images)


def test_preconditionings_are_those_of_denoisers(tmp_path) -> None:
    classifier = NoisyClassifier(Spy(), VP(steps=1000), preconditioning="vp")
    y, lam = torch.randn(1, 1, 1, 2), VP(steps=1000).levels[[400]].float()
    seen = {}
    classifier.ema_network.forward = lambda x, c_noise: seen.update(x=x, c_noise=c_noise) or x.flatten(1)
    classifier(y, lam)
    torch.testing.assert_close(seen["x"], y * torch.rsqrt(1 + lam**2))
    torch.testing.assert_close(seen["c_noise"], torch.tensor([400.0]))
    with pytest.raises(ValueError, match="needs the process VP, got VE"):
        NoisyClassifier(encoder(), preconditioning="vp")
    twin = load_classifier(saved(NoisyClassifier(encoder(), VP(), preconditioning="vp"), tmp_path))
    assert twin.preconditioning == "vp"


def test_names_that_wrappers_gave_are_read_and_the_weight_that_does_not_fit_is_named(tmp_path) -> None:
    module = NoisyClassifier(encoder())
    path = saved(module, tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    weights = {name.replace("network.", "network._orig_mod."): w for name, w in checkpoint["state_dict"].items()}
    torch.save({**checkpoint, "state_dict": weights}, path)
    twin = load_classifier(path)
    assert all(torch.equal(twin.state_dict()[name], w) for name, w in module.state_dict().items())
    name, _ = weights.popitem()
    torch.save({**checkpoint, "state_dict": weights}, path)
    with pytest.raises(ValueError, match=f"lacks 1 weights, among them '{name.replace('_orig_mod.', '')}', which is"):
        load_classifier(path)


def test_guidance_reads_averages_which_an_old_checkpoint_takes_from_its_raw_weights(tmp_path) -> None:
    module = NoisyClassifier(encoder(), ema=EMA(half_life=100, ramp_up=0))
    path = saved(module, tmp_path)
    y, lam = torch.randn(6, 1, 4, 4), torch.tensor(0.7)
    averages = load_classifier(path)(y, lam)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] = {name: w for name, w in checkpoint["state_dict"].items() if name.startswith("network.")}
    del checkpoint["ersde_lit"]["noisy_classifier"]["ema"]
    torch.save(checkpoint, path)
    old = load_classifier(path)
    assert old.ema == EMA()
    for name, weight in old.network.state_dict().items():
        assert torch.equal(weight, old.ema_network.state_dict()[name])
        assert torch.equal(weight, module.network.state_dict()[name])
    assert not torch.allclose(old(y, lam), averages)
    module.ema_network.load_state_dict(old.network.state_dict())
    assert torch.equal(old(y, lam), module.eval()(y, lam))


def test_its_averages_can_have_another_length_afterwards(tmp_path) -> None:
    runner = trainer(tmp_path, callbacks=[callback := PowerEMA(16, lengths=(0.1, 0.2))])
    runner.fit(module := NoisyClassifier(encoder(), optimizer=AdamWConfig(1e-2)), datamodule=Noise())
    (tmp_path / "checkpoints").mkdir()
    runner.save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    AtomicCheckpointIO().save_checkpoint(reconstruct(tmp_path, 0.1), tmp_path / "made.ckpt")
    made = load_classifier(tmp_path / "made.ckpt")
    for name, average in callback.averages[0.1].items():
        torch.testing.assert_close(made.ema_network.state_dict()[name], average)
        assert torch.equal(made.network.state_dict()[name], module.network.state_dict()[name])
