"""Command line: dispatcher that answers `--help` and unknown commands without importing torch."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ersde_lit.errors import UserError

CTRL_C = 130  # exit code
# command: (module with a `run`, what --help says)
COMMANDS = {
    "fit": ("fit", "train a denoiser: fit --config configs/digits.yaml"),
    "validate": ("fit", "losses, and FID or PSNR, of a run on its validation data"),
    "test": ("fit", "the loss of a run on its test data"),
    "predict": ("fit", "one generated image for each image of the test data"),
    "data": ("data", "convert your images, and write a configuration: data SOURCE --out FOLDER --config_out FILE"),
    "sample": ("sample", "images from a checkpoint: sample --ckpt_path X --seeds 0-499 --nfe 20 --out samples.npz"),
    "restore": ("restore", "degraded images restored: restore --ckpt_path X --images FOLDER --nfe 5 --out restored"),
    "evaluate": ("evaluate", "FID of samplers: evaluate --ckpt_path X --solvers default,heun --data D --out results"),
    "tune": ("tune", "the best sampler for a network, learned: tune --ckpt_path X --nfe 5,6 --data D --out X.tables"),
    "reference": ("reference", "statistics of real images for FID: reference FOLDER --out stats.npz"),
    "analyze": ("analyze", "errors of solvers step by step: analyze --solvers er_sde,dpm++2m --nfe 10 --out FOLDER"),
    "ema": ("weights", "averaged weights of any length: ema runs/NAME --sigma_rel 0.12 --out model.ckpt"),
    "import": (
        "weights",
        "weights of EDM, EDM2, guided-diffusion, diffusers to a checkpoint: import edm.pkl --out model.ckpt",
    ),
    "export": ("weights", "a checkpoint to safetensors: export model.ckpt --out model.safetensors"),
}
HELP = "\n".join(
    [
        "usage: python -m ersde_lit COMMAND [options]",
        "",
        "Train diffusion denoisers with PyTorch Lightning, sample them with ER-SDE-Solvers.",
        "",
        "commands:",
        *(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()),
        "",
        "`python -m ersde_lit COMMAND --help` lists the options of a command.",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, or 2 after one line on standard error about what was wrong."""
    command, *arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(HELP)
        return 0
    if command == "--version":
        from ersde_lit import __version__

        print(__version__)
        return 0
    if command not in COMMANDS:
        return fail(f"no command {command!r}: choose one of {', '.join(COMMANDS)}")
    try:
        import_module(f"ersde_lit.cli.{COMMANDS[command][0]}").run(command, arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else fail(stop.code)
    except KeyboardInterrupt:
        if not int(os.environ.get("LOCAL_RANK", 0)):  # one process a node says so
            fail("stopped; the same command goes on")
        return CTRL_C
    except UnicodeDecodeError as error:
        return fail(f"{command}: a YAML file is no text: {error}")
    except Exception as error:
        if (known := _known(error)) is None:
            raise
        return fail(f"{command}: {known}")
    return 0


def fail(message: str) -> int:
    """Prints one line and returns the exit code of bad input."""
    print(f"ersde_lit: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _known(error: BaseException | None) -> BaseException | None:
    """Finds the expected error in the chain of causes; None: it is a bug."""
    while error is not None and not isinstance(error, UserError | OSError | FloatingPointError):
        error = error.__cause__
    return error
