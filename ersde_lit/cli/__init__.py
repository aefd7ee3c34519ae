"""The command line: a thin dispatcher, so that help and wrong commands answer without importing torch."""

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

COMMANDS = {
    "fit": ("trainer", "train a denoiser: fit --config configs/digits.yaml"),
    "validate": ("trainer", "losses and FID of a run on its validation data"),
    "test": ("trainer", "the loss of a run on its test data"),
    "predict": ("trainer", "one generated image for each image of the test data"),
    "data": ("data", "a data set to a memory-mapped array: data SOURCE --out FOLDER --size 64"),
    "sample": ("sample", "images from a checkpoint: sample --ckpt_path X --seeds 0-499 --nfe 20 --out samples.npz"),
    "evaluate": ("evaluate", "FID of samplers: evaluate --ckpt_path X --solvers default,heun --data D --out results"),
    "reference": ("reference", "statistics of real images for FID: reference FOLDER --out stats.npz"),
    "analyze": ("analyze", "where solvers lose: analyze --solvers er_sde,dpm++2m --nfe 10 --out FOLDER"),
    "ema": ("ema", "averaged weights of any length: ema runs/NAME --sigma_rel 0.12 --out model.ckpt"),
    "import": ("import_weights", "others' weights to a checkpoint: import edm.pkl --out model.ckpt"),
    "export": ("export", "a checkpoint to the form to publish: export model.ckpt --out model.safetensors"),
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
        "`python -m ersde_lit COMMAND --help` lists a command's options.",
    ]
)


# The parser's words, in this order, and ours.
READABLE = {
    r'Parser key "(\S+)":': r"--\1:",
    r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - ": "",
    r" - Expected a <class 'NoneType'>": "",
    r" Given value type: <class '[\w.]+'> Given value: ": ". Got value: ",
    r"Expected a typing\.Literal\[(.*?)\]": r"expected one of \1",
    r"Expected a <class 'int'>": "expected a whole number",
    r"Expected a <class 'float'>": "expected a number",
    r"Not of type \w+: does not conform to restriction v": "expected a number ",
    r"Not of type \w*Int: invalid literal .*?: '.*?'": "expected a whole number",
    r"Not of type \w*Float: could not convert .*?: '.*?'": "expected a number",
    r" - expected ": " or ",
    r"\. Got value: ": ", got ",
}


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
    except UnicodeDecodeError as error:
        return fail(f"{command}: a file that should be text, as YAML is, is none: {error}")
    except (ValueError, OSError, FloatingPointError) as error:
        if (ours := _ours(error)) is None:
            raise
        return fail(f"{command}: {ours}")
    return 0


def fail(message: str) -> int:
    """Prints one line, in the command line's words rather than the parser's, and returns the exit code of bad input."""
    line = " ".join(message.split())
    for pattern, words in READABLE.items():
        line = re.sub(pattern, words, line)
    print(f"ersde_lit: {line}", file=sys.stderr)
    return 2


def _ours(error: BaseException | None) -> BaseException | None:
    """What our own code, or the system, raised with a message for the user: the error, or what it was made of.

    The parser makes its own of whatever a class that it instantiates has raised.
    """
    while error is not None and not (isinstance(error, OSError) or _is_ours(error)):
        error = error.__cause__
    return error


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by our own code."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    package = Path(__file__).parents[1]
    return trace is not None and Path(os.path.abspath(trace.tb_frame.f_code.co_filename)).is_relative_to(package)
