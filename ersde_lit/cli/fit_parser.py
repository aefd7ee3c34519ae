"""Parser of `fit`, `validate`, `test` and `predict`: LightningCLI's with the options of a run, ours before its own."""

from typing import NoReturn

from jsonargparse.typing import PositiveInt
from lightning.pytorch.cli import LightningArgumentParser

from ersde_lit.cli import COMMANDS
from ersde_lit.cli.parser import one_line
from ersde_lit.training import RollingCheckpoint

HELP = {  # in the place of Lightning's
    "ckpt_path": "checkpoint that is taken; fit finds its run's own, and goes on from this one with its optimiser",
    "weights_only": "has no effect: checkpoints are always read as plain data",
    "seed_everything": "seed of the run; image order, noise and initial weights follow from it",
}
HEADINGS = {  # of groups, in this order
    "model": "Model",
    "model.optimizer": "Learning rate and its schedule",
    "model.ema": "Averages of weights",
    "data": "Data",
    "checkpoint": "Checkpoints of the run",
    "trainer": "Lightning's trainer",
}


class Parser(LightningArgumentParser):
    """LightningArgumentParser that reports errors in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SystemExit(one_line(message))


def add_run_options(parser: LightningArgumentParser) -> None:
    """Adds the options that are neither the model's nor the data's nor the trainer's."""
    name = "name of the folder in runs/; that of the config file if not given"
    parser.add_argument("--run", type=str | None, help=name)
    start = "checkpoint, or anything that `import` reads, whose averaged weights a new training starts from"
    parser.add_argument("--init_from", type=str | None, help=start)
    skip = "names of layers that start anew, as embed_label for other classes; parts of names will do"
    parser.add_argument("--init_skip", type=str | None, help=skip)
    batch = "images a device can take at a time; a step accumulates as many such batches as its batch_size needs"
    parser.add_argument("--device_batch_size", type=PositiveInt | None, help=batch)
    parser.add_argument("--compile", type=bool, default=False, help="torch.compile the network that is trained")
    parser.add_argument("--channels_last", type=bool, default=False, help="memory format of weights; for GPUs")
    parser.add_lightning_class_args(RollingCheckpoint, "checkpoint")


def arranged(parser: LightningArgumentParser, command: str) -> LightningArgumentParser:
    """Puts the options of a command in their order, with our words for Lightning's."""
    parser.description = COMMANDS[command][1][0].upper() + COMMANDS[command][1][1:]
    parser.usage = f"python -m ersde_lit {command} --config FILE [options]"
    named = {name: group for name in HEADINGS if (group := (parser.groups or {}).get(name))}
    for name, group in named.items():
        group.title = HEADINGS[name]
    if parser.groups and command in parser.groups:
        parser.groups[command].title = "Where it goes on"
    first = [group for group in parser._action_groups if group not in named.values()]
    parser._action_groups = [*first, *named.values()]
    for action in parser._actions:
        if action.dest in HELP:
            action.help = HELP[action.dest]
    return parser
