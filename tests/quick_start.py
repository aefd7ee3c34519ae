"""The quick start's configuration, cut to seconds."""

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = [
    "--model.network.init_args.width=8", "--model.network.init_args.multipliers=[1]",
    "--model.network.init_args.attention=[]", "--model.network.init_args.blocks=1",
    "--model.network.init_args.head_width=8", "--trainer.enable_model_summary=false",
    "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", "--trainer.enable_progress_bar=false",
]  # fmt: skip
SMALL_GRID = ("--trainer.callbacks.init_args.num_samples=64", "--trainer.callbacks.init_args.nfes=[2,3]")


def fit(*options: str) -> list[str]:
    return ["fit", "--config", str(CONFIGS / "digits.yaml"), *TINY, *options]
