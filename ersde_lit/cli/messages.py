"""Filters for what Lightning prints that its users can do nothing about."""

import logging
import warnings

WARNINGS = (
    "LightningCLI's args parameter",  # on purpose: the dispatcher has read the command
    "Found .* module.* in eval mode",  # the averaged weights
    "does not have many workers",  # a batch of images in memory is one index and one multiply
    "your dataloader is not resumable",  # it is: SeededOrder asks where to go on
    "Be aware that when using `ckpt_path`, callbacks",  # the run folder says which have changed
    "`isinstance\\(treespec, LeafSpec\\)`",
)
LINES = (
    "litlogger", "GPU available: False", "TPU available", "HPU available", "estimate number of stepping batches",
    "`Trainer.fit` stopped", "Restoring states from the checkpoint", "Restored all states", "Seed set to",
    "`weights_only` was not set",  # the plugins that read checkpoints set it
    "Detected KeyboardInterrupt",  # the commands say how to go on
)  # fmt: skip


def filter_messages() -> None:
    """Leaves out Lightning's advertisements, absent devices and expected warnings."""
    for harmless in WARNINGS:
        warnings.filterwarnings("ignore", f".*{harmless}")
    for name in (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
        "lightning.pytorch.trainer.connectors.checkpoint_connector",
    ):
        logger = logging.getLogger(name)
        if _is_wanted not in logger.filters:
            logger.addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in LINES)
