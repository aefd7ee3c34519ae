import os
import zipfile

import numpy as np
import pytest
from image_sets import encoded, pixels, png, write_folder, write_zip
from PIL import Image

from ersde_lit.data.files import Folder, Zip

IMAGE = png(pixels(1)[0])


@pytest.fixture(params=["folder", "zip"])
def opened(request, tmp_path):
    def write(files):
        if request.param == "folder":
            return Folder(write_folder(tmp_path / "set", files))
        return Zip(write_zip(tmp_path / "set.zip", files))

    return write


def test_every_ending_of_an_image_counts_in_any_case(opened):
    names = ["a.png", "b.jfif", "c.JPE", "deep/d.avif", "deep/e.jp2", "f.TGA", "g.pnm", "h.Jpeg"]
    files = opened(dict.fromkeys(names, IMAGE))
    assert files.images == sorted(names)
    assert files.notes == ()
    assert np.array_equal(files.decode("c.JPE", None, "apply"), files.decode("a.png", None, "apply"))


def test_what_is_left_out_is_counted_and_named(opened):
    others = ["notes.txt", "photo.heic", "a.png.part", "0123abcd", ".hidden.png"]
    files = opened(dict.fromkeys(["a.png", *others], IMAGE))
    assert files.images == ["a.png"]
    assert files.left_out == sorted(others)
    (note,) = files.notes
    assert note.startswith("5 files left out")
    assert note.endswith(": .hidden.png, 0123abcd, a.png.part, ...")


def test_what_never_is_an_image_needs_no_word(opened):
    others = ["dataset.json", "deep/meta.json", "deep/Thumbs.db", ".DS_Store", "._a.png", "__MACOSX/._a.png"]
    files = opened(dict.fromkeys(["a.png", *others], IMAGE))
    assert files.images == ["a.png"]
    assert files.notes == ()


def test_no_image_at_all_says_what_there_is(opened):
    with pytest.raises(ValueError, match=r"set\S* holds no image: 1 file left out, .*: movie.mp4"):
        opened({"movie.mp4": b"?"})


def test_no_file_at_all(opened):
    with pytest.raises(ValueError, match=r"holds no image$"):
        opened({"dataset.json": b"{}"})


def test_a_link_to_nothing_is_no_silent_loss(tmp_path):
    folder = write_folder(tmp_path, {"a.png": IMAGE})
    os.symlink("nowhere", folder / "b.png")
    with pytest.raises(ValueError, match=r"b.png cannot be used: No such file"):
        Folder(folder).decode("b.png", 3, "apply")


def test_a_hidden_folder_is_not_entered_but_named(tmp_path):
    files = Folder(write_folder(tmp_path, {"a.png": IMAGE, ".cache/x.png": IMAGE}))
    assert (files.images, files.left_out) == (["a.png"], [".cache"])


@pytest.mark.parametrize("target", [".", "..", "../..", "cat", "self"])
def test_links_that_lead_in_circles_end(tmp_path, target):
    folder = write_folder(tmp_path / "above" / "set", {"cat/a.png": IMAGE, "b.png": IMAGE})
    write_folder(tmp_path / "above", {"beside.png": IMAGE})
    os.symlink(folder / "cat" if target == "self" else target, folder / "cat" / "loop")
    files = Folder(folder)
    assert files.images == ["b.png", "cat/a.png"]
    assert files.left_out == ["cat/loop"]


def test_a_link_to_a_folder_elsewhere_is_followed_once(tmp_path):
    elsewhere = write_folder(tmp_path / "elsewhere", {"x.png": IMAGE})
    folder = write_folder(tmp_path / "set", {"a.png": IMAGE})
    os.symlink(elsewhere, folder / "link")
    os.symlink(elsewhere, folder / "other")
    files = Folder(folder)
    assert (files.images, files.left_out) == (["a.png", "link/x.png"], ["other"])


def test_the_content_tells_the_kind_not_the_ending(opened):
    jpeg = encoded(Image.new("RGB", (8, 8), (9, 9, 9)), "jpeg")
    assert opened({"a.png": jpeg}).decode("a.png", 3, "apply").getpixel((3, 3)) == (9, 9, 9)


def test_an_entry_that_unpacks_to_very_much_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(70_000_000))
    with pytest.raises(ValueError, match=r"bomb.zip refused: .*a.png"):
        Zip(tmp_path / "bomb.zip")


def test_a_pipe_among_the_pictures_is_left_out_and_named(tmp_path):
    folder = write_folder(tmp_path, {"a.png": IMAGE})
    os.mkfifo(folder / "b.png")
    files = Folder(folder)
    assert (files.images, files.left_out) == (["a.png"], ["b.png"])
