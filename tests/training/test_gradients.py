"""Every weight has a gradient in every step, or several ranks cannot train by DDP."""

from typing import Any

import lightning.pytorch as pl
import pytest
from tiny import Pictures, network, trainer

from ersde_lit.data import Augment
from ersde_lit.networks import ClassifierEncoder, DhariwalClassifierEncoder, DhariwalUNet, Network, SongUNet
from ersde_lit.training import DiffusionModule, NoisyClassifier

SMALL: dict[str, Any] = {
    "model_channels": 8, "channel_mult": (1, 1), "num_blocks": 1, "attn_resolutions": (2,), "augment_dim": 9
}  # fmt: skip
NETWORKS = {
    "unet": lambda classes: network(num_classes=classes, augment_dim=9, multipliers=(1, 1), attention=(0,)),
    "ddpm++": lambda classes: SongUNet(4, 1, 1, label_dim=classes, **SMALL),
    "ncsn++": lambda classes: SongUNet(
        4, 1, 1, classes, embedding_type="fourier", encoder_type="residual", resample_filter=(1, 3, 3, 1), **SMALL
    ),
    "skip": lambda classes: SongUNet(4, 1, 1, classes, encoder_type="skip", decoder_type="skip", **SMALL),
    "adm": lambda classes: DhariwalUNet(4, 1, 1, label_dim=classes, **SMALL),
}


def without_gradient(module: pl.LightningModule, weights: Network, folder) -> list[str]:
    """The weights that a step leaves without one."""
    missing = []

    def look(optimizer: Any) -> None:
        missing.extend(name for name, weight in weights.named_parameters() if weight.grad is None)

    module.on_before_optimizer_step = look  # type: ignore[assignment]
    trainer(folder, max_steps=1, limit_val_batches=0).fit(module, datamodule=Pictures(8))
    return missing


@pytest.mark.parametrize("settings", [{}, {"label_dropout": 1.0}, {"augment": Augment(0.5)}], ids=str)
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_of_denoisers(kind: str, classes: int, settings: dict[str, Any], tmp_path) -> None:
    module = DiffusionModule(NETWORKS[kind](classes), **settings)
    assert without_gradient(module, module.denoiser.network, tmp_path) == []


@pytest.mark.parametrize(
    "made",
    [
        ClassifierEncoder((1, 4, 4), 3, width=8, multipliers=(1, 1), blocks=1, attention=(0,), head_width=8),
        DhariwalClassifierEncoder(4, 1, 3, 8, (1, 1), 1, (2,)),
    ],
    ids=["encoder", "adm"],
)
def test_of_classifiers(made: Network, tmp_path) -> None:
    module = NoisyClassifier(made)
    assert without_gradient(module, module.network, tmp_path) == []
