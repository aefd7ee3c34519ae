"""torch.save's older format: what torch reads, and nothing that it should not."""

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from ersde_lit.untrusted.torch_before_zip import is_before_zip, read_before_zip

MAGIC = 0x1950A86A20F9469CFC6C


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def saved(content: object, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def test_it_is_read_as_torch_reads_it(tmp_path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    base = torch.arange(12.0)
    content = {
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plain": [1, 2.5, None, True, "word", (1, 2), 2**40],
        "views": [base.view(3, 4).T, base[4:7], torch.tensor(3), torch.zeros(0, 2)],
        "types": [torch.arange(3).to(t) for t in (torch.float16, torch.bfloat16, torch.int8, torch.int16, torch.bool)],
        "ordered": OrderedDict(a=1),
    }
    path = saved(content, tmp_path / "old.pt")
    assert is_before_zip(path)
    read = read_before_zip(path)
    assert same(read, torch.load(path, weights_only=True))
    read["state_dict"]["0.weight"].add_(1)  # its own memory, not that of the file
    assert same(read_before_zip(path), content)


def test_other_files_are_not_of_it(tmp_path) -> None:
    torch.save({}, tmp_path / "new.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({}))
    (tmp_path / "empty.pt").touch()
    assert not any(is_before_zip(path) for path in tmp_path.iterdir())


class Evil:
    def __reduce__(self):
        return open, ("canary", "w")


class Stored:
    """A tensor of 4 numbers in a storage of `numel`, as torch.save refers to it."""

    def __init__(self, numel: int, key: str = "0", kind: type = torch.FloatStorage) -> None:
        self.identity = ("storage", kind, key, "cpu", numel, None)

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (self, 0, (4,), (1,), False, OrderedDict())


def by_hand(content: object, *storages: tuple[str, int, bytes]) -> bytes:
    """The format written by hand: key, length and bytes of each storage are what they are said to be."""

    class Pickler(pickle.Pickler):
        depth = 0

        def persistent_id(self, value):
            self.depth += isinstance(value, Stored)  # the tensor, and then its storage
            return value.identity if isinstance(value, Stored) and self.depth % 2 == 0 else None

    stream = io.BytesIO()
    for part in (MAGIC, 1001, {"little_endian": True}):
        pickle.dump(part, stream, 2)
    Pickler(stream, 2).dump(content)
    pickle.dump([key for key, _, _ in storages], stream, 2)
    return stream.getvalue() + b"".join(struct.pack("<q", length) + data for _, length, data in storages)


WHOLE = ("0", 4, b"\0" * 16)


def test_what_is_written_by_hand_is_read(tmp_path) -> None:
    (tmp_path / "old.pt").write_bytes(by_hand({"a": Stored(4)}, WHOLE))
    assert read_before_zip(tmp_path / "old.pt")["a"].equal(torch.zeros(4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (by_hand({"a": Evil()}), "it names"),
        (by_hand({"a": Stored(2**40)}, ("0", 2**40, b"")), "claim 4,398,046,511,104 bytes"),
        (by_hand({"a": Stored(4), "b": Stored(2**32, "1")}, WHOLE, ("1", 4, b"")), "claim 17,179,869,200 bytes"),
        (by_hand({"a": Stored(3)}, ("0", 3, b"\0" * 12)), "leaves its storage of 3"),
        (by_hand({"a": Stored(4)}, ("0", 5, b"\0" * 20)), "claims 4 numbers"),
        (by_hand({"a": Stored(4)}, ("0", 4, b"\0" * 15)), "a storage of 15 bytes"),
        (by_hand({"a": Stored(4)}), "does not list its storages"),
        (by_hand({"a": Stored(4)}, WHOLE, ("1", 4, b"\0" * 16)), "does not list its storages"),
        (by_hand({"a": Stored(4), "b": Stored(5)}, WHOLE), "two types or lengths"),
        (by_hand({"a": Stored(4), "b": Stored(4, "0", torch.IntStorage)}, WHOLE), "two types or lengths"),
        (by_hand({"a": Stored(4)}, WHOLE)[:60], "damaged or truncated"),
    ],
)
def test_what_is_hostile_or_damaged_is_one_line(tmp_path, monkeypatch, content: bytes, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.pt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_before_zip("old.pt")
    assert "\n" not in str(caught.value)
    assert not Path("canary").exists()
