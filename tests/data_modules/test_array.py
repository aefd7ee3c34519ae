import json
import os
import shutil

import numpy as np
import pytest
import torch
from image_sets import edm_files, pixels, write_folder
from numpy.lib import format as npy

from ersde_lit.data import ImageArray
from ersde_lit.data.array import check_array
from ersde_lit.data.convert import convert
from ersde_lit.data.opening import open_source

LABELS = [3, 0, 1, 1, 2, 0, 3, 2, 2, 1]


def made(folder, name="a", labels=LABELS, held_out=(0, 5), seed=0, size=8):
    """A converted set of ten images."""
    source = open_source(write_folder(folder / f"{name}_source", edm_files(pixels(10, size, seed=seed), labels)), size)
    convert(source, folder / name, np.array(held_out, int))
    return str(folder / name)


@pytest.fixture(scope="module")
def array(tmp_path_factory):
    return made(tmp_path_factory.mktemp("array"))


@pytest.fixture
def copy(array, tmp_path):
    return shutil.copytree(array, tmp_path / "copy")


def test_shape_and_classes_are_known_before_loading(array):
    data = ImageArray(array)
    assert (data.image_shape, data.num_classes, data.class_names) == ((3, 8, 8), 4, ())
    assert data._splits == {}


def test_its_description_names_the_folder(array):
    assert ImageArray(array).description == f"training images of ImageArray {array}"


def test_batches_are_the_images(array):
    data = ImageArray(array, batch_size=8)
    images, labels = next(iter(data.train_dataloader()))
    assert sorted(labels.tolist()) == sorted(LABELS[k] for k in range(10) if k not in (0, 5))
    expected = sorted(pixels(10)[[1, 2, 3, 4, 6, 7, 8, 9]].reshape(8, -1).tolist())
    assert sorted(((images + 1) * 127.5).round().int().flatten(1).tolist()) == expected
    assert np.array_equal(torch.cat([*data.batches(3)]), data.split("train").images)


def test_another_folder_is_held_out_and_all_of_the_first_is_trained_on(array, tmp_path):
    other = made(tmp_path, "b", seed=1)
    data = ImageArray(array, val_root=other)
    assert [len(data.split(name).labels) for name in ("train", "val", "test")] == [10, 10, 10]
    assert sorted(data.split("val").images.flatten(1).tolist()) == sorted(pixels(10, seed=1).reshape(10, -1).tolist())


def test_two_folders_must_go_together(array, tmp_path, monkeypatch):
    more, grown = made(tmp_path, "more", [0, 1, 2, 3, 4] * 2), made(tmp_path, "grown", size=16)
    none, two = made(tmp_path, "none", None, seed=1), made(tmp_path, "two", [0, 1] * 5)
    for other in (more, grown, none):
        with pytest.raises(ValueError, match=r"classes\) does not go with .*classes\)"):
            ImageArray(array, val_root=other).split("val")
    assert len(ImageArray(array, val_root=two).split("val").labels) == 10
    with pytest.raises(ValueError, match="holds the very images of"):
        ImageArray(array, val_root=array).split("val")


def test_class_names_must_agree(tmp_path):
    for name, classes in {"a": ["cat", "dog"], "b": ["cat", "emu"], "c": ["cat"]}.items():
        files = {
            f"{c}/1.png": content for c, content in zip(classes, edm_files(pixels(2), None).values(), strict=False)
        }
        convert(open_source(write_folder(tmp_path / f"{name}_source", files), 8), tmp_path / name, np.array([], int))
    with pytest.raises(ValueError, match=r"b has other classes than .*a: emu in the place of dog"):
        ImageArray(str(tmp_path / "a"), str(tmp_path / "b")).split("val")
    assert len(ImageArray(str(tmp_path / "a"), str(tmp_path / "c")).split("val").labels) == 1


def test_nothing_held_out_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds nothing out: pass val_root, or convert anew with --val_size"):
        ImageArray(made(tmp_path, held_out=())).split("train")


def test_an_array_larger_than_the_memory_is_served(tmp_path):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shape = (memory // 500_000, 3, 512, 512)  # 1.5 times the memory; a sparse file takes no room
    with (tmp_path / "images.npy").open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)))
    np.save(tmp_path / "labels.npy", np.zeros(shape[0], np.int64))
    info = {"images": shape[0], "val_images": 5, "image_shape": shape[1:], "num_classes": 1}
    rest = {"class_names": [], "source": "", "sha256": {}}
    (tmp_path / "info.json").write_text(json.dumps(info | rest))
    data = ImageArray(str(tmp_path), batch_size=4)
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 512, 512)
    assert len(data.split("val").images) == 5


def changed(**fields):
    def change(folder):
        info = json.loads((folder / "info.json").read_text()) | fields
        (folder / "info.json").write_text(json.dumps(info))

    return change


def cut(name):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no folder .*copy: `python -m ersde_lit data SOURCE --out"),
        (lambda folder: (folder / "info.json").unlink(), "info.json cannot be read: .*No such file"),
        (lambda folder: (folder / "info.json").write_text("{"), "info.json cannot be read: "),
        (lambda folder: (folder / "info.json").write_text("{}"), "info.json cannot be read: 'image_shape'"),
        (changed(more=1), "info.json cannot be read: .*unexpected keyword argument 'more'"),
        (changed(val_images=None), "info.json cannot be read: its numbers cannot be 10, None, 4, 3, 8, 8"),
        (changed(val_images=11), "info.json cannot be read: its numbers cannot be 10, 11, 4, 3, 8, 8"),
        (changed(num_classes="4"), "info.json cannot be read: its numbers"),
        (changed(sha256=["a"]), "info.json cannot be read: its checksums are not by file"),
        (lambda folder: (folder / "images.npy").unlink(), "images.npy is missing, cut short or damaged"),
        (cut("images.npy"), "images.npy is missing, cut short or damaged"),
        (cut("labels.npy"), "labels.npy is missing, cut short or damaged"),
        (lambda folder: np.save(folder / "labels.npy", np.array([None] * 10)), "labels.npy is missing, cut short or"),
        (lambda folder: np.save(folder / "labels.npy", np.zeros(10)), r"labels.npy is float64 \(10,\), not int64"),
        (lambda folder: np.save(folder / "labels.npy", np.zeros(9, int)), r"labels.npy is int64 \(9,\), not int64"),
        (lambda folder: np.save(folder / "labels.npy", np.full(10, 4)), "labels.npy runs from 4 to 4, not 0 to 3"),
        (lambda folder: np.save(folder / "labels.npy", np.full(10, -1)), "labels.npy runs from -1 to -1, not 0 to 3"),
        (changed(image_shape=[1, 8, 8]), r"images.npy is uint8 \(10, 3, 8, 8\), not uint8 \(10, 1, 8, 8\)"),
        (changed(images=11), r"images.npy is uint8 \(10, 3, 8, 8\), not uint8 \(11, 3, 8, 8\)"),
    ],
)  # fmt: skip
def test_damage_is_one_line_that_names_the_file(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=message) as caught:
        ImageArray(str(copy)).split("train")
    assert "\n" not in str(caught.value)


def test_a_checksum_finds_any_other_byte(copy):
    check_array(copy)
    content = bytearray((copy / "images.npy").read_bytes())
    content[-7] ^= 1
    (copy / "images.npy").write_bytes(content)
    ImageArray(str(copy)).split("train")  # which would take too long to find it
    with pytest.raises(ValueError, match=r"images.npy is damaged: its checksum"):
        check_array(copy)


def test_labels_that_claim_more_than_the_file_holds_take_no_memory(copy):
    content = (copy / "labels.npy").read_bytes()
    (copy / "labels.npy").write_bytes(content.replace(b"(10,), }" + b" " * 11, b"(9999999999999,), }"))
    with pytest.raises(ValueError, match=r"labels.npy is missing, cut short or damaged"):
        ImageArray(str(copy))


def test_notes_and_command_may_be_missing_from_an_older_folder(copy):
    info = json.loads((copy / "info.json").read_text())
    del info["notes"], info["command"]
    (copy / "info.json").write_text(json.dumps(info))
    assert check_array(copy).notes == ()
