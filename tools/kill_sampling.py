"""Kills `sample` at random moments, starts it again, and compares what it ends with to a run that was never stopped.

    python tools/kill_sampling.py                                # a small network of random weights, digits' shape
    python tools/kill_sampling.py --ckpt_path runs/digits/checkpoints/last.ckpt

2,000 images, on one process and on two gloo ranks, as .zip, .npz and folder of PNGs. A run gets a number of SIGKILLs, a
random number of blocks apart: to the first rank, to the second, or to both, while they sample or put images together.
Then it is left to end. What lies there must be the bytes of the undisturbed run, and nothing beside it. Linux only.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import torch
from jsonargparse import auto_cli

from ersde_lit.networks import UNet
from ersde_lit.training import DiffusionModule
from ersde_lit.training.averaged import SPEC_KEY

RUNS = [(1, "one.zip"), (2, "two.npz"), (2, "two"), (1, "one")]  # ranks, --out


def main(
    kills: int = 20,
    kills_a_run: int = 5,
    images: int = 2000,
    batch_size: int = 20,
    nfe: int = 10,
    seed: int = 0,
    ckpt_path: Path | None = None,
) -> int:
    """Returns the number of runs that did not end with the same bytes.

    Args:
        kills: in all.
        kills_a_run: at most; then it may end.
        images: of a run.
        batch_size: of its blocks.
        nfe: network calls an image.
        seed: of the random moments.
        ckpt_path: checkpoint to sample from.
    """
    rng, start = random.Random(seed), time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="kill_sampling"))
    command = [
        sys.executable, "-m", "ersde_lit", "sample", f"--ckpt_path={ckpt_path.resolve() if ckpt_path else fake(work)}",
        f"--seeds=0-{images - 1}", f"--nfe={nfe}", f"--batch_size={batch_size}", "--accelerator=cpu",
    ]  # fmt: skip
    expected: dict[str, dict[str, bytes]] = {}
    blocks, done, wrong = -(-images // batch_size), 0, 0
    for ranks, out in cycle(RUNS):
        form = Path(out).suffix
        if form not in expected:
            run(command, work / f"reference{form}")
            expected[form] = contents(work / f"reference{form}")
        folder = work / "killed"
        folder.mkdir()
        for line in survive(
            [*command, f"--devices={ranks}", f"--out={folder / out}"],
            folder / out,
            blocks,
            kills_a_run,
            kills - done,
            rng,
        ):
            done += 1
            print(f"{time.monotonic() - start:5.0f} s  kill {done:2} of {out:8} {line}", flush=True)
        same = contents(folder / out) == expected[form] and os.listdir(folder) == [out]
        wrong += not same
        print(f"{time.monotonic() - start:5.0f} s  {out}: {'the same bytes' if same else 'OTHER BYTES'}", flush=True)
        shutil.rmtree(folder)
        if done >= kills:
            break
    print(f"{done} kills; {wrong} runs ended with other bytes than the undisturbed ones")
    shutil.rmtree(work)
    return wrong


def survive(
    command: list[str], out: Path, blocks: int, kills_a_run: int, kills: int, rng: random.Random
) -> Iterator[str]:
    """Kills and restarts a run until it has ended; says where each kill hit."""
    parts = out.with_name(f".{out.name}.parts")
    for turn in range(min(kills_a_run, kills)):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        here = count(parts)
        left = blocks - here
        last = turn == kills_a_run - 1
        moment = (
            blocks if last else here + rng.randint(0, max(1, 2 * left // kills_a_run))
        )  # the last: while assembling
        while process.poll() is None and (count(parts) < moment or not parts.exists()):
            time.sleep(0.003)
        time.sleep(rng.random() * 0.03)
        ranks = [process.pid, *children(process.pid)]
        whom = rng.choice([ranks[:1], ranks[-1:], ranks])
        if process.poll() is not None or not parts.exists():
            process.wait()
            return  # it was faster
        for rank in whom:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)
        stage = f"{count(parts)} of {blocks} blocks there{', being put together' if any(parts.glob('whole*')) else ''}"
        process.wait()
        while any(alive(rank) for rank in ranks):
            time.sleep(0.05)
        yield f"{'both ranks' if len(whom) > 1 else 'rank ' + str(ranks.index(whom[0]))}, {stage}"
    run(command[:-1], out)


def run(command: list[str], out: Path) -> None:
    ended = subprocess.run([*command, f"--out={out}"], env=environment(), capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"exit code {ended.returncode}: {ended.stderr}")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def count(parts: Path) -> int:
    """The finished blocks."""
    try:
        return sum(name.endswith(".zip") and name[0].isdigit() for name in os.listdir(parts))
    except FileNotFoundError:
        return 0


def children(pid: int) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def alive(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def contents(out: Path) -> dict[str, bytes]:
    """Every file of it."""
    if out.is_file():
        return {"": out.read_bytes()}
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def fake(folder: Path) -> Path:
    """A checkpoint with what `sample` reads of one: a small network, no weight of which is 0."""
    torch.manual_seed(0)
    module = DiffusionModule(UNet((1, 8, 8), 10, width=8, multipliers=[1], blocks=1, attention=[], head_width=8))
    for weight in module.ema_denoiser.parameters():
        weight.data.add_(0.05 * torch.randn_like(weight))
    path = folder / "small.ckpt"
    torch.save({"state_dict": module.state_dict(), SPEC_KEY: module.spec}, path)
    return path


if __name__ == "__main__":
    sys.exit(auto_cli(main, as_positional=False))
