import errno
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError

from ersde_lit.files import replacing
from ersde_lit.interop.weights import safetensors_file
from ersde_lit.training import AtomicCheckpointIO, snapshots
from ersde_lit.training.snapshots import write_snapshot

# What they say on a full disk.
SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
TORCH = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
TORCH_OLD = RuntimeError("write(): fd 3 failed with No space left on device")
STREAM = RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")


def fails(error: Exception):
    """A writer that gets half of a file onto the disk."""

    def write(*arguments, **named) -> None:
        path = next(argument for argument in arguments if isinstance(argument, Path))
        path.write_bytes(b"half a file")
        raise error

    return write


@pytest.mark.parametrize("error", [SAFETENSORS, TORCH, TORCH_OLD, STREAM, OSError(errno.ENOSPC, "No space left")])
def test_a_full_disk_is_one_kind_of_error_and_leaves_the_old_file(tmp_path, error: Exception) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"No space left|disk full") as caught, replacing(path) as temporary:
        fails(error)(temporary)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), KeyboardInterrupt()])
def test_other_errors_stay_what_they_are(tmp_path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, replacing(tmp_path / "file"):
        raise error
    assert caught.value is error
    assert not [*tmp_path.iterdir()]


def test_what_is_written_is_whole(tmp_path) -> None:
    with replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"new")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_bytes() == b"new"
    assert len([*tmp_path.iterdir()]) == 1


def test_checkpoints(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", fails(TORCH))
    with pytest.raises(OSError, match="disk full"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert not [*tmp_path.iterdir()]


def test_snapshots(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(snapshots, "save_file", fails(SAFETENSORS))
    with pytest.raises(OSError, match="No space left"):
        write_snapshot(tmp_path / "0.safetensors", {0.1: {"a": torch.ones(2)}}, torch.float32)
    assert not [*tmp_path.iterdir()]


def test_export_says_it_in_one_line(tmp_path, monkeypatch, capsys) -> None:
    from tiny import network

    from ersde_lit.cli import main
    from ersde_lit.training import DiffusionModule

    module = DiffusionModule(network())
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "net.ckpt")
    monkeypatch.setattr(safetensors_file, "save_file", fails(SAFETENSORS))
    out = tmp_path / "net.safetensors"
    assert main(["export", str(tmp_path / "net.ckpt"), f"--out={out}"]) == 2
    assert capsys.readouterr().err == (f"ersde_lit: export: --out {out} cannot be written: No space left on device\n")
    assert [path.name for path in tmp_path.iterdir()] == ["net.ckpt"]
