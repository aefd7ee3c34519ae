import json
import os
import random
import resource
import shutil
import signal
import time
from collections import namedtuple

import numpy as np
import pytest
from filelock import FileLock
from image_sets import edm_files, encoded, pixels, png, write_batches, write_folder, write_zip
from PIL import Image

from ersde_lit.data import ImageArray
from ersde_lit.data import convert as conversion
from ersde_lit.data.array import check_array, read_array
from ersde_lit.data.convert import convert, draw_held_out
from ersde_lit.data.opening import open_source
from ersde_lit.data.source import Source

N, SIZE = 10, 8
IMAGES = pixels(N, SIZE)
LABELS = [3, 0, 1, 1, 2, 0, 3, 2, 2, 1]


class Killed(BaseException):
    """Nothing catches it."""


class Images(Source):
    """Images in memory, which counts the blocks it is asked for and may fail at one of them."""

    num_classes, image_shape, identity = 4, (3, SIZE, SIZE), "these"
    labels = np.array(LABELS)

    def __init__(self, fails_at=None, error=Killed, pause=0.0):
        self.fails_at, self.error, self.pause, self.blocks = fails_at, error, pause, 0

    def read(self, indices):
        if self.blocks == self.fails_at:
            raise self.error
        self.blocks += 1
        time.sleep(self.pause)
        return IMAGES[indices]


def stored(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(conversion, "BLOCK", 2)


# --- what each form becomes


def zipped(folder, images, labels):
    return write_zip(folder / "set.zip", edm_files(images, labels))


def unzipped(folder, images, labels):
    return write_folder(folder / "set", edm_files(images, labels))


def batches(folder, images, labels):
    classes = [label + 1 for label in labels]
    return write_batches(
        folder / "set", [images[:4], images[4:5], images[5:]], [classes[:4], classes[4:5], classes[5:]]
    )


def one_batch(folder, images, labels):
    return write_batches(folder / "set", [images], [[label + 1 for label in labels]]) / "train_data_batch_1.npz"


@pytest.mark.parametrize(("form", "classes"), [(zipped, 4), (unzipped, 4), (batches, 1000), (one_batch, 1000)])
@pytest.mark.parametrize("size", [2, 3, 64])
def test_pixels_and_labels_of_every_form_survive(tmp_path, form, classes, size):
    images = pixels(N, size)
    source = open_source(form(tmp_path, images, LABELS), size)
    info = convert(source, tmp_path / "out", np.array([1, 4, 7]))
    assert (info.images, info.val_images, info.image_shape, info.num_classes) == (N, 3, (3, size, size), classes)
    data = ImageArray(str(tmp_path / "out"))
    for name, indices in {"train": [0, 2, 3, 5, 6, 8, 9], "val": [1, 4, 7], "test": [1, 4, 7]}.items():
        assert np.array_equal(data.split(name).images, images[indices])
        assert data.split(name).labels.tolist() == [LABELS[k] for k in indices]


def test_ten_batches_go_by_their_numbers(tmp_path):
    images = pixels(11, SIZE)
    folder = write_batches(tmp_path / "set", [images[k : k + 1] for k in range(11)], [[k + 1] for k in range(11)])
    source = open_source(folder, SIZE)
    assert source.labels.tolist() == [*range(11)]
    assert np.array_equal(source.read(np.array([9, 1, 10])), images[[9, 1, 10]])


def test_npz_files_are_taken_where_the_pickles_are_too(tmp_path):
    folder = batches(tmp_path, IMAGES, LABELS)
    for number in (1, 2, 3):
        (folder / f"train_data_batch_{number}").write_bytes(b"never read")
    assert open_source(folder, SIZE).labels.tolist() == LABELS


def test_null_labels_and_unlabelled_mean_no_classes(tmp_path):
    for source in (
        open_source(zipped(tmp_path, IMAGES, None), SIZE),
        open_source(unzipped(tmp_path, IMAGES, LABELS), SIZE, unlabelled=True),
        open_source(one_batch(tmp_path / "npz", IMAGES, LABELS), SIZE, unlabelled=True),
    ):
        assert source.num_classes == 0
        assert source.labels.tolist() == [-1] * N


def test_class_folders_give_classes_in_the_order_of_their_names(tmp_path):
    files = {"n02/b.png": png(IMAGES[0]), "n02/a.png": png(IMAGES[1]), "n01/z.png": png(IMAGES[2])}
    source = open_source(write_folder(tmp_path, files | {".cache/x.png": b"", "n01/.DS_Store": b""}), SIZE)
    assert source.class_names == ("n01", "n02")
    assert source.labels.tolist() == [0, 1, 1]
    assert np.array_equal(source.read(np.arange(3)), IMAGES[[2, 1, 0]])


# --- crop and resize


@pytest.mark.parametrize("shape", [(32, 32), (32, 41), (45, 32)])
def test_area_resize_averages_the_pixels_of_the_middle_square(tmp_path, shape):
    image = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    source = open_source(write_folder(tmp_path, {"cat/a.png": png(image)}), 8)
    top, left = (shape[0] - 32) // 2, (shape[1] - 32) // 2
    means = image[:, top : top + 32, left : left + 32].reshape(3, 8, 4, 8, 4).mean((2, 4))
    assert np.abs(source.read(np.array([0]))[0] - means).max() < 1  # rounded after rows and again after columns


def test_lanczos_rings_where_area_does_not(tmp_path):
    edge = np.zeros((3, 32, 32), np.uint8)
    edge[..., 18:] = 200
    folder = write_folder(tmp_path, {"cat/a.png": png(edge)})
    area, lanczos = (open_source(folder, 8, resize=how).read(np.array([0])).max() for how in ("area", "lanczos"))
    assert area == 200
    assert lanczos > 205


@pytest.mark.parametrize(
    ("mode", "channels", "expected"),
    [("L", 3, [90, 90, 90]), ("1", 3, [255, 255, 255]), ("P", 3, [90, 90, 90]), ("CMYK", 3, None),
     ("RGBA", 3, [90, 90, 90]), ("LA", 3, [90, 90, 90]), ("RGB", 1, [90]), ("L", 1, [90])],
)  # fmt: skip
def test_other_kinds_of_pixels_are_converted(tmp_path, mode, channels, expected):
    grey = Image.new("L", (8, 8), 90 if mode != "1" else 255)
    image = encoded(grey.convert(mode), "tiff" if mode == "CMYK" else "png")
    pixel = open_source(write_folder(tmp_path, {"cat/a.tif": image}), 8, channels).read(np.array([0]))[0, :, 4, 4]
    assert np.abs(pixel - np.array(expected or [90, 90, 90], float)).max() <= 1


def test_a_png_cut_anywhere_is_refused_or_has_all_its_pixels(tmp_path):
    whole, refused = png(IMAGES[0]), 0
    for keep in range(len(whole)):
        source = open_source(write_folder(tmp_path, {"cat/a.png": whole[:keep]}), 8)
        try:
            assert np.array_equal(source.read(np.array([0]))[0], IMAGES[0])
        except ValueError:
            refused += 1
    assert refused > len(whole) - 30


# --- what is held out


def test_held_out_images_are_drawn_once_by_the_seed():
    drawn = draw_held_out(1000, 100, seed=3)
    assert len(set(drawn.tolist())) == 100
    assert drawn.tolist() == sorted(drawn.tolist())
    assert np.array_equal(drawn, draw_held_out(1000, 100, seed=3))
    assert not np.array_equal(drawn, draw_held_out(1000, 100, seed=4))
    assert 350 < drawn.mean() < 650


@pytest.mark.parametrize(("count", "size"), [(21, 2), (1000, 50), (1_281_167, 5000)])
def test_a_twentieth_is_held_out_if_nothing_is_said(count, size):
    assert len(draw_held_out(count, None, 0)) == size


# --- interruptions


@pytest.mark.parametrize("block", range(5))
def test_goes_on_where_it_was_interrupted(tmp_path, small_blocks, block):
    convert(Images(), tmp_path / "whole", np.array([0, 5]))
    out, told = tmp_path / "out", []
    with pytest.raises(Killed):
        convert(Images(fails_at=block), out, np.array([0, 5]))
    assert not out.exists()
    again = Images()
    convert(again, out, np.array([0, 5]), told.append)
    assert again.blocks == 5 - block
    assert told == [2 * block] + [2] * (5 - block)
    assert stored(out) == stored(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def test_goes_on_from_a_file_cut_anywhere(tmp_path, small_blocks):
    convert(Images(), tmp_path / "whole", np.array([0, 5]))
    whole = (tmp_path / "whole" / "images.npy").read_bytes()
    with pytest.raises(Killed):
        convert(Images(fails_at=0), tmp_path / "out", np.array([0, 5]))
    for keep in [0, 1, 127, 128, 129, 319, 320, 321, len(whole) - 1, len(whole)]:
        shutil.copytree(tmp_path / "out.partial", tmp_path / f"cut{keep}.partial")
        (tmp_path / f"cut{keep}.partial" / "images.npy").write_bytes(whole[:keep])
        convert(Images(), tmp_path / f"cut{keep}", np.array([0, 5]))
        assert stored(tmp_path / f"cut{keep}") == stored(tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_survives_being_killed_at_any_time(tmp_path, small_blocks):
    convert(Images(), tmp_path / "whole", np.array([0, 5]))
    rng, kills, finished = random.Random(0), 0, 0
    while kills < 20:
        child = os.fork()
        if child == 0:
            try:
                convert(Images(pause=0.002), tmp_path / f"out{finished}", np.array([0, 5]))
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        if (tmp_path / f"out{finished}").exists():
            assert stored(tmp_path / f"out{finished}") == stored(tmp_path / "whole")
            finished += 1
    convert(Images(), tmp_path / f"out{finished}", np.array([0, 5]))
    assert stored(tmp_path / f"out{finished}") == stored(tmp_path / "whole")


def test_a_disk_that_is_full_is_one_line_and_nothing_is_lost(tmp_path, small_blocks):
    """RLIMIT_FSIZE makes any file above it fail, as a full disk would (Python ignores the signal)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            ValueError, match=r"out.partial cannot be written: File too large; the same command continues"
        ):
            convert(Images(), tmp_path / "out", np.array([0, 5]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = Images()
    convert(again, tmp_path / "out", np.array([0, 5]))
    assert again.blocks < 5
    check_array(tmp_path / "out")


def test_too_small_a_disk_is_seen_at_once(tmp_path, monkeypatch):
    usage = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=100))
    with pytest.raises(ValueError, match=r"out.partial will take 1.9 kB, and 100 bytes are free"):
        convert(Images(), tmp_path / "out", np.array([0, 5]))


@pytest.mark.parametrize("other", ["identity", "held out", "nothing known"])
def test_the_beginning_of_another_conversion_is_kept(tmp_path, small_blocks, other):
    source, held_out = Images(fails_at=2), np.array([0, 5])
    with pytest.raises(Killed):
        convert(source, tmp_path / "out", held_out)
    if other == "identity":
        source.identity = "those"
    elif other == "held out":
        held_out = np.array([0, 6])
    else:
        (tmp_path / "out.partial" / "info.json").unlink()
    before = stored(tmp_path / "out.partial")
    with pytest.raises(ValueError, match=r"out.partial is (of another, unfinished conversion|in the way)"):
        convert(source, tmp_path / "out", held_out)
    assert stored(tmp_path / "out.partial") == before


@pytest.mark.parametrize("change", ["file", "size", "label", "resize"])
def test_a_source_that_changed_is_another_one(tmp_path, change):
    folder = write_folder(tmp_path, edm_files(IMAGES, LABELS))
    before = open_source(folder, SIZE).identity
    assert open_source(folder, SIZE).identity == before
    if change == "file":
        (folder / "00000/img00000003.png").write_bytes(png(IMAGES[3]) + b" ")
    if change == "label":
        write_folder(folder, {"dataset.json": edm_files(IMAGES, [1, *LABELS[1:]])["dataset.json"]})
    changed = {"size": 4} if change == "size" else {"resize": "lanczos"} if change == "resize" else {}
    assert open_source(folder, **{"size": SIZE, **changed}).identity != before


def test_only_one_process_writes(tmp_path, small_blocks):
    with pytest.raises(Killed):
        convert(Images(fails_at=2), tmp_path / "out", np.array([0, 5]))
    lock, busy = FileLock(tmp_path / "out.partial" / ".lock"), "being written by another process"
    with lock, pytest.raises(ValueError, match=busy):
        convert(Images(), tmp_path / "out", np.array([0, 5]))


def test_what_exists_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists: choose another name"):
        convert(Images(), tmp_path / "out", np.array([0]))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_bad_image_stops_it_and_the_rest_follows_once_it_is_mended(tmp_path, small_blocks):
    folder = write_folder(tmp_path / "set", edm_files(IMAGES, LABELS))
    bad = folder / "00000/img00000007.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-40] + bytes(40))  # same length: the set is the same
    with pytest.raises(ValueError, match=r"img00000007.png cannot be used"):
        convert(open_source(folder, SIZE), tmp_path / "out", np.array([0, 5]))
    bad.write_bytes(whole)
    convert(open_source(folder, SIZE), tmp_path / "out", np.array([0, 5]))
    assert np.array_equal(read_array(tmp_path / "out")[1].images, IMAGES[[1, 2, 3, 4, 6, 7, 8, 9, 0, 5]])


def test_info_is_plain_json(tmp_path):
    convert(Images(), tmp_path / "out", np.array([0, 5]))
    info = json.loads((tmp_path / "out" / "info.json").read_text())
    assert (info["images"], info["val_images"], info["num_classes"]) == (10, 2, 4)
    assert set(info["sha256"]) == {"images.npy", "labels.npy"}


def test_the_same_command_begins_anew_where_its_data_set_has_changed(tmp_path, small_blocks):
    with pytest.raises(Killed):
        convert(Images(fails_at=2), tmp_path / "out", np.array([0, 5]), command="data set")
    source, told = Images(), []
    source.identity = "those"
    with pytest.raises(ValueError, match="another, unfinished conversion"):
        convert(source, tmp_path / "out", np.array([0, 5]), command="data other")
    convert(source, tmp_path / "out", np.array([0, 5]), command="data set", tell=told.append)
    assert source.blocks == 5
    assert "has changed" in told[0]
    assert np.array_equal(read_array(tmp_path / "out")[1].images, IMAGES[[1, 2, 3, 4, 6, 7, 8, 9, 0, 5]])


def test_what_another_process_writes_is_not_begun_anew(tmp_path, small_blocks):
    with pytest.raises(Killed):
        convert(Images(fails_at=2), tmp_path / "out", np.array([0, 5]), command="data set")
    source, before = Images(), stored(tmp_path / "out.partial")
    source.identity = "those"
    lock, busy = FileLock(tmp_path / "out.partial" / ".lock"), "being written by another process"
    with lock, pytest.raises(ValueError, match=busy):
        convert(source, tmp_path / "out", np.array([0, 5]), command="data set")
    assert stored(tmp_path / "out.partial") == before
