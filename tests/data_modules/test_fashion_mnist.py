import gzip
import struct
from urllib.error import URLError

import pytest
import torch
import torchvision

from ersde_lit.data import FashionMNIST, fashion_mnist

COUNTS = {"train": 30, "test": 12}


def idx(part):
    """The bytes of the two files of a part, in the format of MNIST."""
    n, seed = (COUNTS["train"], 0) if part == "train" else (COUNTS["test"], 1)
    images = torch.randint(256, (n, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    labels = (torch.arange(n) % 10).to(torch.uint8)
    return {
        f"{part}-images-idx3-ubyte": struct.pack(">4i", 2051, n, 28, 28) + images.numpy().tobytes(),
        f"{part}-labels-idx1-ubyte": struct.pack(">2i", 2049, n) + labels.numpy().tobytes(),
    }


@pytest.fixture
def files(monkeypatch, tmp_path):
    """A small data set in no place yet, without Debian's package and without a network."""

    def no_network(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(fashion_mnist, "COUNTS", COUNTS)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", no_network)
    return idx("train") | idx("t10k")


@pytest.fixture
def packed(files, tmp_path):
    (tmp_path / "debian").mkdir()
    for name, content in files.items():
        (tmp_path / "debian" / f"{name}.gz").write_bytes(gzip.compress(content))
    return files


def unpack(files, raw):
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)


def test_reads_files_that_are_there(files, tmp_path):
    data = FashionMNIST(str(tmp_path), val_size=5, batch_size=10)
    unpack(files, data.raw)
    data.prepare_data()
    data.setup("fit")
    train = data.split("train")
    assert train.images.shape == (30, 1, 28, 28)
    assert train.images.flatten().numpy().tobytes() == files["train-images-idx3-ubyte"][16:]
    assert train.labels.tolist() == [k % 10 for k in range(30)]
    assert train.labels.dtype == torch.int64
    test, val = data.split("test"), data.split("val")
    assert test.images.flatten().numpy().tobytes() == files["t10k-images-idx3-ubyte"][16:]
    rows = test.images.flatten(1).tolist()
    where = [rows.index(row) for row in val.images.flatten(1).tolist()]
    assert len(set(where)) == 5
    assert torch.equal(val.labels, test.labels[where])


def test_unpacks_debians_package(packed, tmp_path, monkeypatch):
    data = FashionMNIST(str(tmp_path / "root"), val_size=5)
    data.prepare_data()
    assert {p.name: p.read_bytes() for p in data.raw.iterdir()} == packed
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "gone")
    data.prepare_data()  # nothing left to do
    assert len(data.split("train").labels) == 30


def test_setup_alone_is_enough(packed, tmp_path):
    assert len(FashionMNIST(str(tmp_path / "root"), val_size=5).split("train").labels) == 30


def test_damaged_package_leaves_nothing_that_looks_whole(packed, tmp_path):
    archive = tmp_path / "debian" / "train-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-100])
    data = FashionMNIST(str(tmp_path / "root"), val_size=5)
    with pytest.raises(ValueError, match="could not be put there"):
        data.prepare_data()
    assert not (data.raw / "train-images-idx3-ubyte").exists()


def test_downloads_when_nothing_else_helps(files, tmp_path, monkeypatch):
    def download(url, download_root, filename, md5):
        (data.raw / filename.removesuffix(".gz")).write_bytes(files[filename.removesuffix(".gz")])

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", download)
    data = FashionMNIST(str(tmp_path / "root"), val_size=5)
    data.prepare_data()
    assert len(data.split("test").labels) == 12


def test_offline_says_what_to_do_in_one_line(files, tmp_path):
    with pytest.raises(ValueError, match="Name or service not known") as caught:
        FashionMNIST(str(tmp_path / "root"), val_size=5).prepare_data()
    assert "go online, or install Debian's dataset-fashion-mnist, or put" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_root_that_cannot_be_written_says_so_in_one_line(packed, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"could not be put there .*Not a directory") as caught:
        FashionMNIST(str(tmp_path / "file"), val_size=5).prepare_data()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
@pytest.mark.parametrize("keep", [0, 7, -1])
def test_cut_short_says_so_in_one_line(files, tmp_path, name, keep):
    data = FashionMNIST(str(tmp_path), val_size=5)
    unpack(files, data.raw)
    (data.raw / name).write_bytes(files[name][:keep])
    with pytest.raises(ValueError, match="are damaged: delete that folder and retry"):
        data.split("train")


def test_files_of_another_size_are_refused(files, tmp_path, monkeypatch):
    data = FashionMNIST(str(tmp_path), val_size=5)
    unpack(files, data.raw)
    monkeypatch.setattr(fashion_mnist, "COUNTS", {"train": 29, "test": 12})
    with pytest.raises(ValueError, match=r"train files .* damaged"):
        data.split("train")


def test_shoes_are_not_mirrored_unless_asked():
    assert FashionMNIST().horizontal_flip is False
    assert FashionMNIST(horizontal_flip=True).horizontal_flip is True


def test_refuses_a_senseless_split():
    with pytest.raises(ValueError, match="val_size must be between 1 and 10000, not 0"):
        FashionMNIST(val_size=0)


def test_a_truncated_download_without_a_network_is_named(files, tmp_path):
    data = FashionMNIST(str(tmp_path), val_size=5)
    unpack({"train-labels-idx1-ubyte.gz": gzip.compress(files["train-labels-idx1-ubyte"])[:-5]}, data.raw)
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz that was there is damaged .* go online"):
        data.prepare_data()


def test_a_damaged_file_of_debians_package_is_named(packed, tmp_path):
    archive = tmp_path / "debian" / "t10k-labels-idx1-ubyte.gz"
    archive.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"debian/t10k-labels-idx1-ubyte.gz is damaged"):
        FashionMNIST(str(tmp_path / "root"), val_size=5).prepare_data()
    assert not [*(tmp_path / "root" / "FashionMNIST" / "raw").glob("t10k-labels*")]
