from pathlib import Path

import pytest
import torch
from ranks import run_on_ranks
from safetensors.torch import load_file

from ersde_lit.training import load
from ersde_lit.training.checkpoint import read


def train(folder: Path, strategy: str, ranks: int) -> dict:
    script = Path(__file__).with_name("fsdp_on_ranks.py")
    done = run_on_ranks(script, "train", [str(folder), strategy, ranks], ranks)
    assert done.codes == [0] * ranks, done.said
    return done.values[0]


def test_sharded_training_is_training(tmp_path) -> None:
    """Two ranks with half of the weights each train, average, checkpoint, resume and sample as one rank does.

    In float64: in float32 Adam makes of rounding, where a gradient is almost nothing, a good part of a step.
    """
    one, two = train(tmp_path / "one", "auto", 1), train(tmp_path / "two", "fsdp2", 2)
    assert one["held"] == 1
    assert two["held"] == pytest.approx(0.5, abs=0.05)
    assert 1 <= two["whole"] <= 2  # the one that is averaged, and the next
    torch.testing.assert_close(torch.tensor(two["images"]), torch.tensor(one["images"]), rtol=0, atol=1e-5)
    kept, other = (read(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("one", "two"))
    assert other["images_seen"] == kept["images_seen"] == 80
    torch.testing.assert_close(other["state_dict"], kept["state_dict"], rtol=0, atol=1e-8)
    moments, others = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (kept, other))
    torch.testing.assert_close(others, moments, rtol=0, atol=1e-8)
    snapshots, of_two = (
        load_file(tmp_path / name / "ema_snapshots" / "0000000080.safetensors") for name in ("one", "two")
    )
    torch.testing.assert_close(of_two, snapshots, rtol=0, atol=1e-6)
    model = load(tmp_path / "two" / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(model.sample(range(2), nfe=3), torch.tensor(two["images"]), rtol=0, atol=1e-5)
