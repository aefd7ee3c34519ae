import io
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from image_sets import edm_files, encoded, pixels, png, write_folder, write_zip
from PIL import Image

from ersde_lit.data.convert import convert, draw_held_out
from ersde_lit.data.opening import open_source
from ersde_lit.metrics import image_files

IMAGES = pixels(7)
NHWC = IMAGES.transpose(0, 2, 3, 1)


def together(path, batch_size=3):
    return torch.cat([*image_files(path).batches(batch_size)]).numpy()


def nested(images):
    return {f"{k:02d}/deep/{k}.png": png(image) for k, image in enumerate(images)} | {"notes.txt": b"none"}


def array_folder(folder, held_out=2):
    source = open_source(write_folder(folder / "in", edm_files(IMAGES, None)), 8, unlabelled=True)
    convert(source, folder / "array", draw_held_out(7, held_out, 0))
    return folder / "array"


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


FORMS = {
    "folder": lambda folder: write_folder(folder / "set", nested(IMAGES)),
    "zip": lambda folder: write_zip(folder / "set.zip", edm_files(IMAGES, None)),
    "npz": lambda folder: npz(folder / "set.npz", arr_0=NHWC, arr_1=np.arange(7)),
    "compressed npz": lambda folder: np.savez_compressed(folder / "set.npz", arr_0=NHWC) or folder / "set.npz",
}


@pytest.mark.parametrize("form", FORMS)
def test_gives_the_very_bytes_in_order(tmp_path, form):
    path = FORMS[form](tmp_path)
    files = image_files(path)
    assert (len(files), files.image_shape, files.path) == (7, (3, 8, 8), path)
    assert np.array_equal(together(path), IMAGES)
    assert np.array_equal(together(str(path), 100), IMAGES)
    assert [len(batch) for batch in files.batches(3)] == [3, 3, 1]
    assert next(files.batches(3)).dtype == torch.uint8


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_share_every_image_once(tmp_path, form, ranks):
    files = image_files(FORMS[form](tmp_path))
    shares = [[*files.batches(2, rank, ranks)] for rank in range(ranks)]
    dealt = [shares[k % ranks][k // ranks] for k in range(4)]
    assert np.array_equal(torch.cat(dealt).numpy(), IMAGES)
    assert sum(map(len, shares)) == 4


def test_a_folder_of_pictures_may_have_an_info_of_its_own(tmp_path):
    write_folder(tmp_path / "set", {"a.png": png(IMAGES[0]), "info.json": b"{}"})
    assert np.array_equal(together(tmp_path / "set"), IMAGES[:1])


def test_of_our_array_the_training_images_count(tmp_path):
    files = image_files(array_folder(tmp_path))
    held_out = draw_held_out(7, 2, 0)
    assert np.array_equal(torch.cat([*files.batches(2)]).numpy(), np.delete(IMAGES, held_out, 0))


@pytest.mark.parametrize("form", ["png", "npz"])
def test_grey_images_have_one_channel(tmp_path, form):
    grey = pixels(4, channels=1)
    path = tmp_path / "set.npz"
    if form == "png":
        path = write_folder(tmp_path / "set", {f"{k}.png": png(image) for k, image in enumerate(grey)})
    else:
        npz(path, arr_0=grey.transpose(0, 2, 3, 1))
    assert np.array_equal(together(path), grey)


def test_grey_ones_among_coloured_ones_are_read_as_coloured(tmp_path):
    grey = Image.fromarray(pixels(1, channels=1)[0, 0])
    path = write_folder(tmp_path / "set", {"a.png": png(IMAGES[0]), "b.png": encoded(grey)})
    assert np.array_equal(together(path)[1], np.repeat(np.asarray(grey)[None], 3, 0))


@pytest.mark.parametrize("form", ["npz", "compressed npz", "zip"])
def test_memory_does_not_grow_with_the_images(tmp_path, form):
    def peak(count):
        images = pixels(count, 32)
        path = tmp_path / f"{count}.{form[-3:]}"
        if form == "zip":
            write_zip(path, edm_files(images, None))
        else:
            (np.savez if form == "npz" else np.savez_compressed)(path, arr_0=images.transpose(0, 2, 3, 1))
        del images
        tracemalloc.start()
        assert sum(len(batch) for batch in image_files(path).batches(50)) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(200), peak(1000)  # 0.6 and 3 MB
    assert large < small + 1_000_000


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    return path


def flipped(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    return path


def wrong_sum(folder):
    """Compressed, with a checksum that is another's: known only when all has been read."""
    np.savez_compressed(folder / "set.npz", arr_0=NHWC)
    with zipfile.ZipFile(folder / "set.npz") as archive:
        checksum = archive.getinfo("arr_0.npy").CRC.to_bytes(4, "little")
    content = (folder / "set.npz").read_bytes()
    (folder / "set.npz").write_bytes(content.replace(checksum, bytes(4)))
    return folder / "set.npz"


def folder_of(**files):
    names = {name.replace("_", "."): content for name, content in files.items()}
    return lambda folder: write_folder(folder / "set", names)


def array(images, **more):
    return lambda folder: npz(folder / "set.npz", arr_0=images, **more)


def sixteen_bits():
    return encoded(Image.fromarray(np.full((8, 8), 4000, np.uint16)))


def transparent():
    return encoded(Image.fromarray(np.zeros((8, 8, 4), np.uint8)))


WITH_NAN = NHWC.astype(np.float32)
WITH_NAN[5, 3, 2, 1] = np.nan
BAD = {
    "nothing there": (lambda folder: folder / "set", "there is no file or folder {}"),
    "an empty folder": (folder_of(), "{} holds no image"),
    "a folder without images": (folder_of(notes_txt=b"none"), "{} holds no image"),
    "mixed sizes": (folder_of(a_png=png(IMAGES[0]), b_png=png(pixels(1, 9)[0])), "{}/b.png is 9x9, and a.png is 8x8"),
    "truncated PNG": (folder_of(a_png=png(IMAGES[0]), b_png=png(IMAGES[1])[:100]), "{}/b.png cannot be used"),
    "truncated first PNG": (folder_of(a_png=png(IMAGES[0])[:20]), "{}/a.png cannot be used"),
    "no image behind its name": (folder_of(a_png=b"text"), "{}/a.png cannot be used: it is no image"),
    "colour after grey": (
        folder_of(a_png=png(pixels(1, channels=1)[0]), b_png=png(IMAGES[0])),
        "{}/b.png cannot be used: it is in colour, and a.png is grey",
    ),
    "16 bits": (folder_of(a_png=sixteen_bits()), "{}/a.png cannot be used: its pixels are of the kind I;16"),
    "transparent": (folder_of(a_png=transparent()), "{}/a.png cannot be used: it is transparent"),
    "corrupt zip": (lambda folder: cut(write_zip(folder / "set.zip", nested(IMAGES)), -40), "{} is damaged, cut short"),
    "damaged image in a zip": (
        lambda folder: flipped(write_zip(folder / "set.zip", {"a.png": png(IMAGES[0])}), 120),
        "a.png in {} cannot be used: ",
    ),
    "corrupt npz": (lambda folder: cut(array(NHWC)(folder), -60), "{} is damaged, cut short or no zip file"),
    "damaged npz": (lambda folder: flipped(array(NHWC)(folder), 600), "{}: arr_0 cannot be used: Bad CRC-32"),
    "wrong checksum": (wrong_sum, "{}: arr_0 cannot be used: Bad CRC-32"),
    "no npz at all": (lambda folder: write_folder(folder, {"set.npz": b"text"}) / "set.npz", "{} is damaged, cut"),
    "npz of something else": (lambda folder: npz(folder / "set.npz", x=NHWC), "{} has no array arr_0"),
    "floats": (array(NHWC / 255), "{}: arr_0 is float64, not uint8: images are whole numbers 0 .. 255"),
    "floats with NaN": (array(WITH_NAN), "{}: arr_0 is float32, with NaN in it, not uint8"),
    "out of range": (array(NHWC.astype(np.int64) - 300), "{}: arr_0 is int64, not uint8"),
    "pickled": (array(np.array([{}, None])), "{}: arr_0 is object, not uint8"),
    "channels first": (array(IMAGES), "{}: arr_0 is [7, 3, 8, 8], not [n, H, W, C] with C = 1 or 3"),
    "one dimension": (array(NHWC.ravel()), "{}: arr_0 is [1344], not [n, H, W, C]"),
    "no images": (array(NHWC[:0]), "{} holds no image"),
    "Fortran order": (array(np.asfortranarray(NHWC)), "{}: arr_0 is in Fortran order"),
    "some other file": (lambda folder: write_folder(folder, {"set.tar": b""}) / "set.tar", "{} is none of the forms"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_images_get_one_line_that_names_the_file(tmp_path, case):
    make, message = BAD[case]
    path = make(tmp_path)
    path.parent.mkdir(exist_ok=True)
    if "folder" in case:
        path.mkdir(exist_ok=True)
    with pytest.raises(ValueError) as error:
        together(path)
    assert str(error.value).startswith(message.format(path))
    assert "\n" not in str(error.value)


def test_a_pickle_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (tmp_path / "owned").write_text, ("",)

    with pytest.raises(ValueError, match="arr_0 is object, not uint8"):
        image_files(npz(tmp_path / "set.npz", arr_0=np.array([Hostile()], object)))
    assert not (tmp_path / "owned").exists()


def test_an_array_that_is_shorter_than_its_head_says(tmp_path):
    file = io.BytesIO()
    np.save(file, NHWC)
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("arr_0.npy", file.getvalue()[:-10])
    with pytest.raises(ValueError, match=r"set.npz: arr_0 cannot be used: it is cut short"):
        together(tmp_path / "set.npz")
