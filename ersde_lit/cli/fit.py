"""Commands `fit`, `validate`, `test` and `predict`: what needs no torch is checked first, then LightningCLI runs."""

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from ersde_lit.errors import UserError


def run(command: str, arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--ckpt_path")
    parser.add_argument("--init_from")
    files, _ = parser.parse_known_args([*arguments])
    if files.ckpt_path and files.init_from:
        raise UserError("--ckpt_path goes on with a training, --init_from begins one: pass one of them")
    paths = [*files.config, *filter(None, (files.ckpt_path, files.init_from))]
    if absent := [path for path in paths if _is_path(path) and not os.path.exists(path)]:
        raise UserError(f"there is nothing at {', '.join(absent)}")
    content = {file: read for file in files.config if isinstance(read := _read(file), dict)}

    from ersde_lit.cli.trainer import run_lightning

    run_lightning(command, arguments, content)


def _is_path(text: str) -> bool:
    """Whether it names a file, and is neither YAML nor one of Lightning's words, as "best"."""
    return text.endswith((".ckpt", ".yaml", ".yml", ".safetensors")) and "\n" not in text


def _read(file: str) -> Any:
    """Content of a YAML file; None where it cannot be read, which the parser will say."""
    with suppress(OSError, yaml.YAMLError, UnicodeDecodeError):
        return yaml.safe_load(Path(file).read_text())
