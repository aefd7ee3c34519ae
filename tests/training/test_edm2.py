"""Training with EDM2's network and loss: what forced weight normalisation must survive, and the learned uncertainty."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from ranks import run_on_ranks
from tiny import Pictures, network, trainer

from ersde_lit.data import Digits
from ersde_lit.denoisers import Latents
from ersde_lit.networks import EDM2UNet
from ersde_lit.networks.magnitude import MPConv
from ersde_lit.training import EMA, AdamWConfig, AtomicCheckpointIO, DiffusionModule, RollingCheckpoint, load
from ersde_lit.training.averaged import SPEC_KEY
from ersde_lit.training.checkpoint import read


def edm2(size: int = 4, classes: int = 3) -> EDM2UNet:
    return EDM2UNet(
        size, 1, classes, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[2], channels_per_head=8
    )


def module(**changes) -> DiffusionModule:
    torch.manual_seed(0)
    settings = {"uncertainty": True, "optimizer": AdamWConfig(lr=1e-2), "ema": EMA(half_life=40, ramp_up=0)}
    return DiffusionModule(changes.pop("net", None) or edm2(), **{**settings, **changes})


def fit(folder: Path, made: DiffusionModule, batch_size: int = 8, **changes) -> DiffusionModule:
    pl.seed_everything(0, verbose=False)
    trainer(folder, num_sanity_val_steps=0, **changes).fit(made, datamodule=Pictures(batch_size))
    return made


def test_the_loss_falls_on_digits(tmp_path) -> None:
    made = module(net=edm2(8, 10))
    runner = trainer(tmp_path, max_epochs=3, num_sanity_val_steps=0)
    (before,) = runner.validate(made, datamodule=Digits(), verbose=False)
    runner.fit(made, datamodule=Digits())
    assert runner.callback_metrics["val/loss"] < 0.7 * before["val/loss"]


def test_a_run_resumes_bit_for_bit(tmp_path) -> None:
    def run(folder: str, epochs: int, resumed: bool = False) -> Path:
        path = tmp_path / folder / "checkpoints" / "last.ckpt"
        runner = trainer(
            tmp_path / folder, max_epochs=epochs, num_sanity_val_steps=0, enable_checkpointing=True,
            callbacks=[RollingCheckpoint()], plugins=[AtomicCheckpointIO()],
        )  # fmt: skip
        pl.seed_everything(0, verbose=False)
        runner.fit(module(), datamodule=Pictures(8), ckpt_path=path if resumed else None, weights_only=True)
        return path

    run("twice", 1)
    twice, once = run("twice", 2, resumed=True), run("once", 2)
    torch.testing.assert_close(read(twice)["state_dict"], read(once)["state_dict"], rtol=0, atol=0)


def test_weights_have_magnitude_one_where_a_step_uses_them(tmp_path) -> None:
    """Without it each step at this rate would make them longer, and so the next step's turn smaller."""
    made = module()
    lengths = []
    original = made.denoiser.network.forward

    def forward(*args, **kwargs):
        y = original(*args, **kwargs)
        weights = [layer.weight for layer in made.denoiser.modules() if isinstance(layer, MPConv) and layer.training]
        lengths.extend(weight.detach().square().mean().sqrt().item() for weight in weights if made.training)
        return y

    made.denoiser.network.forward = forward  # type: ignore[method-assign]
    fit(tmp_path, made, limit_val_batches=0)
    # that of the uncertainty is normalised when it is called, after the network
    network_only = [length for i, length in enumerate(lengths) if (i + 1) % (len(lengths) // 10)]
    assert network_only == pytest.approx([1.0] * len(network_only), abs=2e-4)


def test_accumulated_steps_are_the_same(tmp_path) -> None:
    whole = fit(tmp_path, module().double(), precision="64-true")
    parts = fit(tmp_path, module().double(), accumulate_grad_batches=2, precision="64-true")
    # normalisation twice a step is nearly that of once: its eps is 1e-4
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiled_training_is_the_same(tmp_path) -> None:
    plain, compiled = fit(tmp_path, module()), module()
    compiled.denoiser.network.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fit(tmp_path, compiled).state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-4)


def test_training_in_bf16_is_near(tmp_path) -> None:
    full, half = fit(tmp_path, module()), fit(tmp_path, module(), precision="bf16-mixed")
    for name, weight in half.denoiser.state_dict().items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, full.denoiser.state_dict()[name], rtol=0, atol=0.3)
    assert all(weight.isfinite().all() for weight in half.parameters())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_as_one(strategy: str, tmp_path) -> None:
    script = Path(__file__).with_name("fsdp_on_ranks.py")
    found = {}
    for name, ranks in (("auto", 1), (strategy, 2)):
        done = run_on_ranks(script, "train_edm2", [str(tmp_path / name), name, ranks], ranks)
        assert done.codes == [0] * ranks, done.said
        found[name] = read(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"]
    torch.testing.assert_close(found[strategy], found["auto"], rtol=0, atol=1e-7)


def test_the_uncertainty_learns_the_logarithm_of_the_loss() -> None:
    """Its gradient vanishes where exp(u) is the expected loss at that level."""
    torch.manual_seed(0)
    made = module(net=network(num_classes=0))
    denoiser = made.denoiser
    denoiser.error = lambda x0, lam, *_: lam  # type: ignore[method-assign]
    optimizer = torch.optim.Adam(denoiser.uncertainty.parameters(), 0.03)
    for _ in range(300):
        lam = torch.exp(0.5 * torch.randn(256))
        optimizer.zero_grad()
        denoiser.loss(torch.zeros(256, 1, 4, 4), lam, torch.zeros(256, 1, 4, 4)).mean().backward()
        optimizer.step()
    lam = torch.tensor([0.5, 1.0, 2.0])
    torch.testing.assert_close(denoiser.uncertainty(lam), lam.log(), rtol=0, atol=0.1)


def test_any_network_learns_with_it_and_checkpoints_carry_it(tmp_path) -> None:
    made = module(net=network())
    runner = trainer(tmp_path)
    runner.fit(made, datamodule=Pictures(8))
    runner.save_checkpoint(tmp_path / "model.ckpt")
    loaded = load(tmp_path / "model.ckpt")
    torch.testing.assert_close(loaded.state_dict(), made.state_dict(), rtol=0, atol=0)
    lam = torch.tensor([0.5, 2.0])
    assert loaded.ema_denoiser.uncertainty(lam).tolist() == made.ema_denoiser.uncertainty(lam).tolist()
    assert not torch.equal(made.ema_denoiser.uncertainty(lam), module(net=network()).denoiser.uncertainty(lam))
    torch.testing.assert_close(loaded.sample([1], nfe=3), made.sample([1], nfe=3))


def test_the_validation_loss_is_without_it(tmp_path) -> None:
    plain, uncertain = module(net=network(), uncertainty=False), module(net=network())
    uncertain.load_state_dict(plain.state_dict(), strict=False)
    losses = [trainer(tmp_path).validate(made, datamodule=Pictures(8), verbose=False)[0] for made in (plain, uncertain)]
    assert losses[0] == losses[1]


def test_it_is_computed_in_float32_under_autocast() -> None:
    uncertainty = module().denoiser.uncertainty.eval()
    lam = torch.linspace(0.1, 5, 9)
    expected = uncertainty(lam)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(uncertainty(lam), expected)


def test_older_checkpoints_are_of_models_without_uncertainty_and_latents(tmp_path) -> None:
    plain = module(net=network(), uncertainty=False)
    checkpoint = {"state_dict": plain.state_dict()}
    plain.on_save_checkpoint(checkpoint)
    for name in ("uncertainty", "latents"):
        del checkpoint[SPEC_KEY][name]
    assert plain.differences(checkpoint) == {}
    assert module(net=network()).differences(checkpoint) == {"uncertainty": (False, True)}
    of_latents = module(net=network(), uncertainty=False, latents=Latents([0.0], [1.0]))
    assert "latents" in of_latents.differences(checkpoint)
