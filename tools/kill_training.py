"""Kills trainings at random moments, resumes them, and compares what they end with to one that was never stopped.

    python tools/kill_training.py

A run is killed a few times, mostly by SIGKILL and now and then by SIGTERM, each time started again with the same
command, and at last left to end. Its checkpoint must then hold the same bits as the undisturbed run's (weights,
averaged weights, optimiser, schedule, callbacks, Lightning's loops), and its curves the same values. Prints each kill,
and how many of them did no harm.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ersde_lit.training import checkpoint

CONFIG = Path(__file__).parents[1] / "configs" / "digits.yaml"
NETWORK = {"width": 8, "multipliers": [1], "attention": [], "blocks": 1, "head_width": 8, "dropout": 0.1}

STEPS_AN_EPOCH, EVERY = 12, 7  # optimiser steps; EVERY from one checkpoint to the next


def main(kills: int = 20, kills_a_run: int = 4, epochs: int = 40, seed: int = 0) -> int:
    """Returns the number of kills that did harm.

    Args:
        kills: in all.
        kills_a_run: at most; a run may also end before.
        epochs: of a run.
        seed: of the random moments.
    """
    moments = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="kill_training"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)}
    network = [f"--model.network.init_args.{name}={value}" for name, value in NETWORK.items()]
    fid = ["--trainer.callbacks.init_args.num_samples=16", "--trainer.callbacks.init_args.nfes=[2]"]
    command = [
        sys.executable, "-m", "ersde_lit", "fit", "--config", str(CONFIG), *network, *fid, "--model.label_dropout=0.1",
        f"--trainer.max_epochs={epochs}", "--trainer.check_val_every_n_epoch=5", "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1", f"--checkpoint.steps={EVERY}",
    ]  # fmt: skip

    def start(run: Path) -> subprocess.Popen[bytes]:
        with run.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                [*command, f"--trainer.default_root_dir={run}"], env=environment, stdout=log, stderr=log
            )

    began = time.monotonic()
    undisturbed = folder / "undisturbed"
    process = start(undisturbed)
    await_checkpoints(undisturbed, process, 1)
    start_up = time.monotonic() - began
    if process.wait():
        sys.exit(undisturbed.with_suffix(".log").read_text())
    print(f"undisturbed: {time.monotonic() - began:.0f} s, of which {start_up:.0f} s up to step {EVERY}", flush=True)

    done = harmless = 0
    while done < kills:
        run, killed = folder / f"run{done}", 0
        for _ in range(min(kills_a_run, kills - done)):
            process = start(run)
            checkpoints = moments.randrange(epochs * STEPS_AN_EPOCH // EVERY // kills_a_run)
            await_checkpoints(run, process, checkpoints)
            try:
                process.wait(moments.uniform(0, 0.5) if checkpoints else moments.uniform(0, start_up))
                break  # it was faster
            except subprocess.TimeoutExpired:
                killed += 1
                process.send_signal(signal.SIGTERM if (done + killed) % 5 == 0 else signal.SIGKILL)
            print(f"kill {done + killed}: exit code {process.wait()}, {_position(run)}", flush=True)
        if start(run).wait():
            sys.exit(run.with_suffix(".log").read_text())
        if differences := compare(undisturbed, run):
            print(f"{run} ended otherwise: {', '.join(differences)}")
        else:
            harmless += killed
            print("ended as the undisturbed one", flush=True)
        done += killed
    print(f"{harmless} of {done} kills did no harm; {time.monotonic() - began:.0f} s")
    if harmless == done:
        shutil.rmtree(folder)
    return done - harmless


def await_checkpoints(run: Path, process: subprocess.Popen[bytes], count: int) -> None:
    """Returns when that many new checkpoints have been seen, or the process has ended."""
    path = run / "checkpoints" / "last.ckpt"
    seen, before = 0, path.stat().st_mtime if path.exists() else 0.0
    while seen < count and process.poll() is None:
        time.sleep(0.005)
        with suppress(FileNotFoundError):  # for a moment, whenever it is replaced
            if (now := path.stat().st_mtime) != before:
                seen, before = seen + 1, now


def compare(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs, to the last bit; a curve may give a value twice, but not two values."""
    first, second = (_placeless(checkpoint.read(run / "checkpoints" / "last.ckpt"), str(run)) for run in (one, other))
    differences = [name for name in sorted({*first, *second}) if not _same(first.get(name), second.get(name))]
    curves, others = _curves(one), _curves(other)
    return differences + [name for name in sorted({*curves, *others}) if curves.get(name) != others.get(name)]


def _placeless(value: Any, folder: str) -> Any:
    """The content of a checkpoint without the run's folder, which is in the paths of the best checkpoint."""
    if isinstance(value, dict):
        return {_placeless(key, folder): _placeless(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_placeless(item, folder) for item in value]
    return value.replace(folder, "RUN") if isinstance(value, str) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _curves(run: Path) -> dict[str, set[tuple[int, float]]]:
    events = EventAccumulator(str(run / "logs"), size_guidance={"scalars": 0}).Reload()
    return {name: {(event.step, event.value) for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def _position(run: Path) -> str:
    """The step of the newest checkpoint."""
    path = run / "checkpoints" / "last.ckpt"
    return f"at step {checkpoint.read(path)['global_step']}" if path.exists() else "no checkpoint yet"


if __name__ == "__main__":
    sys.exit(auto_cli(main))
