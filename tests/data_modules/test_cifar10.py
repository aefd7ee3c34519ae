import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from image_sets import fake_cifar10, pixels, write_folder, write_tar

from ersde_lit.data import CIFAR10

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"


@pytest.fixture
def files(monkeypatch):
    """A small data set in no place yet, and no network."""

    def no_network(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", no_network)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    return fake_cifar10(monkeypatch)


def refused(data, *parts):
    with pytest.raises(ValueError) as caught:
        data.split("train")
    assert "\n" not in str(caught.value)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_reads_the_published_format(files, tmp_path):
    write_folder(tmp_path / FOLDER, files)
    data = CIFAR10(str(tmp_path), val_size=7)
    train, test, val = (data.split(name) for name in ("train", "test", "val"))
    assert np.array_equal(train.images, np.concatenate([pixels(5, 32, seed=k) for k in range(5)]))
    assert train.labels.tolist() == [(k + j) % 10 for k in range(5) for j in range(5)]
    assert np.array_equal(test.images, pixels(12, 32, seed=5))
    assert tuple(train.images.shape[1:]) == data.image_shape
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    rows = test.images.flatten(1).tolist()
    where = [rows.index(row) for row in val.images.flatten(1).tolist()]
    assert len(set(where)) == 7
    assert torch.equal(val.labels, test.labels[where])


def test_the_real_table_has_the_real_archive():
    published = torchvision.datasets.CIFAR10
    assert (published.base_folder, published.filename) == (FOLDER, ARCHIVE)
    assert [len(published.train_list), len(published.test_list)] == [5, 1]


def test_unpacks_the_archive_where_it_lies(files, tmp_path, monkeypatch):
    archive = write_tar(tmp_path / ARCHIVE, FOLDER, files)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", torchvision.datasets.utils.calculate_md5(archive))
    assert len(CIFAR10(str(tmp_path), val_size=7).split("train").labels) == 25


def test_a_damaged_archive_is_not_unpacked(files, tmp_path):
    write_tar(tmp_path / ARCHIVE, FOLDER, files)  # whose md5 is not the published one
    refused(CIFAR10(str(tmp_path)), "could not be put there", "Name or service not known")
    assert not (tmp_path / FOLDER).exists()


def test_offline_says_what_to_put_where(files, tmp_path):
    refused(
        CIFAR10(str(tmp_path / "root")), f"{tmp_path}/root/{FOLDER}", "go online", f"put {ARCHIVE} (md5 c58f30108f718f"
    )


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_4", "test_batch"])
@pytest.mark.parametrize("keep", [0, 100, -1])
def test_cut_short_names_the_file(files, tmp_path, name, keep):
    write_folder(tmp_path / FOLDER, files | {name: files[name][:keep]})
    refused(CIFAR10(str(tmp_path)), f"{FOLDER}/{name} is cut short or not the published file", "delete its folder")


def test_a_file_that_is_not_the_published_one_is_never_unpickled(files, tmp_path):
    class Opens:
        def __reduce__(self):
            return open, (str(tmp_path / "run"), "w")

    write_folder(tmp_path / FOLDER, files | {"data_batch_2": pickle.dumps(Opens())})
    refused(CIFAR10(str(tmp_path)), "data_batch_2 is cut short or not the published file")
    assert not (tmp_path / "run").exists()


def test_the_archive_overwrites_nothing_else(files, tmp_path):
    write_folder(tmp_path / FOLDER, {"data_batch_2": b"somebody's own"})
    refused(CIFAR10(str(tmp_path)), "data_batch_2 is cut short or not the published file")
    assert (tmp_path / FOLDER / "data_batch_2").read_bytes() == b"somebody's own"


def test_refuses_a_senseless_split():
    with pytest.raises(ValueError, match="val_size must be between 1 and 10000, not 0"):
        CIFAR10(val_size=0)


def test_a_truncated_archive_without_a_network_is_named(files, tmp_path, monkeypatch):
    archive = write_tar(tmp_path / ARCHIVE, FOLDER, files)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", torchvision.datasets.utils.calculate_md5(archive))
    archive.write_bytes(archive.read_bytes()[:-100])
    refused(CIFAR10(str(tmp_path)), f"{archive} that was there is damaged", "md5 is wrong", "Name or service not known")
    archive.unlink()
    with pytest.raises(ValueError, match="go online") as caught:
        CIFAR10(str(tmp_path)).split("train")
    assert "damaged" not in str(caught.value)
