import csv
import sys

import numpy as np
import pytest
import torch
from image_sets import edm_files, encoded, pixels, png, write_folder, write_zip
from PIL import Image

from ersde_lit.cli import main
from ersde_lit.data import Digits
from ersde_lit.metrics import classifier, read_reference, reference_of

IMAGES = pixels(9, 4)
FLAT = IMAGES.reshape(9, -1).astype(float)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path


def refuse(*_, **__):
    raise OSError("no network")


MODULE = """
from ersde_lit.metrics import Features

class Pixels(Features):
    num_features = 48

    def forward(self, images):
        return images.flatten(1).float()
"""


@pytest.fixture
def own(home, monkeypatch):
    (home / "own_features.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(home))
    yield "--features=own_features.Pixels"
    sys.modules.pop("own_features", None)


def test_writes_edms_statistics_of_images_on_disk(home, own, capsys):
    write_zip(home / "set.zip", edm_files(IMAGES, None))
    assert main(["reference", "set.zip", "--out=stats.npz", own]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "stats.npz: mean and covariance of 9 images of set.zip, Pixels"
    assert "warning: 9 images for 48 features: their covariance is singular" in said.out
    assert said.err == ""
    found = dict(np.load("stats.npz"))
    np.testing.assert_allclose(found["mu"], FLAT.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["sigma"], np.cov(FLAT, rowvar=False), rtol=1e-9, atol=1e-9)
    assert "features" not in found
    assert sorted(path.name for path in home.glob("stats*")) == ["stats.npz"]


def test_of_a_data_module_in_features_of_its_labels(home, cache, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))  # where the digits' classifier is
    options = ["--data=ersde_lit.data.Digits", "--features=classifier", "--keep_features=100"]
    assert main(["reference", "--out=stats.npz", *options]) == 0
    said = capsys.readouterr().out
    assert said.startswith("stats.npz: mean and covariance of 1,617 training images of Digits, classifier features, 98")
    features = classifier(Digits())
    found, expected = read_reference("stats.npz", features), reference_of(Digits(), features)
    torch.testing.assert_close(found.statistics.cov, expected.statistics.cov, rtol=1e-5, atol=1e-8)
    assert found.features.shape == (100, 64)


def test_of_a_folder_that_data_made(home, capsys):
    write_folder(home / "set", edm_files(pixels(40, 8), [k % 2 for k in range(40)]))
    assert main(["data", "set", "--out=array", "--size=8", "--val_size=8"]) == 0
    assert main(["reference", "array", "--out=stats.npz", "--features=classifier"]) == 0
    assert "covariance of 32 images of array, classifier features" in capsys.readouterr().out


def folder(**files):
    return lambda home: write_folder(home / "set", {n.replace("_", "."): content for n, content in files.items()})


def array(**arrays):
    return lambda home: np.savez(home / "set.npz", **arrays)


def cut(home):
    array(arr_0=IMAGES.transpose(0, 2, 3, 1))(home)
    (home / "set.npz").write_bytes((home / "set.npz").read_bytes()[:-50])


class Hostile:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path('owned').write_text('')",)


def hostile(home):
    write_folder(home / "set", {"a.png": png(IMAGES[0]), "b.png": png(IMAGES[1])})
    torch.save({"fc.weight": Hostile()}, home / "weights.pth")


PAIR = {"a_png": png(IMAGES[0]), "b_png": png(IMAGES[1])}
BAD = {
    "no images named": (folder(), [], "there are no images: name them, or give --data"),
    "nothing there": (folder(), ["absent"], "there is no file or folder absent"),
    "empty folder": (lambda home: (home / "set").mkdir(), ["set"], "set holds no image"),
    "one image": (folder(a_png=PAIR["a_png"]), ["set"], "statistics need at least two images, not 1"),
    "mixed sizes": (folder(a_png=PAIR["a_png"], b_png=png(pixels(1, 5)[0])), ["set"], "set/b.png is 5x5, and a.png is"),
    "truncated PNG": (folder(a_png=PAIR["a_png"], b_png=PAIR["b_png"][:60]), ["set"], "set/b.png cannot be used"),
    "corrupt npz": (cut, ["set.npz"], "set.npz is damaged"),
    "NaN": (array(arr_0=np.full((2, 4, 4, 3), np.nan)), ["set.npz"], "arr_0 is float64, with NaN in it, not uint8"),
    "range": (array(arr_0=np.full((2, 4, 4, 3), 300)), ["set.npz"], "arr_0 is int64, not uint8: images are whole numb"),
    "shape": (array(arr_0=IMAGES), ["set.npz"], "arr_0 is [9, 3, 4, 4], not [n, H, W, C]"),
    "hostile weights": (hostile, ["set", "--features=inception", "--weights=weights.pth"], "would run code of its own"),
    "offline": (folder(**PAIR), ["set", "--features=inception"], "cannot be downloaded (no network): put https://"),
    "no weights": (folder(**PAIR), ["set", "--features=inception", "--weights=w"], "w cannot be read: No such file"),
    "no labels": (folder(**PAIR), ["set", "--features=classifier"], "--features classifier is trained on labelled"),
    "no such data": (folder(), ["--data=ersde_lit.data.Absent"], "--data ersde_lit.data.Absent"),
    "no such features": (folder(**PAIR), ["set", "--features=absent.Features"], "--features absent.Features"),
    "two sets": (folder(**PAIR), ["set", "--data=ersde_lit.data.Digits"], "are two sets of images: give one"),
    "other weights": (folder(**PAIR), ["set", "--weights=w"], "weights are Inception's"),
    "out exists": (lambda home: (home / "there.npz").write_text(""), ["set", "--out=there.npz"], "there.npz exists"),
    "out nowhere": (folder(**PAIR), ["set", "--out=absent/s.npz"], "there is no folder"),
    "out no npz": (folder(**PAIR), ["set", "--out=stats"], "the file is an .npz"),
    "accelerator": (folder(**PAIR), ["set", "--accelerator=abacus"], "--accelerator"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_gets_one_line(home, own, capsys, case):
    make, options, message = BAD[case]
    make(home)
    before = {path for path in home.iterdir() if path.name != "cache"}
    assert main(["reference", "--out=stats.npz", own, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ersde_lit: reference: ")
    assert error.count("\n") == 1
    assert message in error
    assert {path for path in home.iterdir() if path.name not in ("cache", "__pycache__")} == before


def upside_down(image):
    """A PNG that stores `image` turned by half, and says so."""
    exif = Image.Exif()
    exif[0x0112] = 3
    return encoded(Image.fromarray(image.transpose(1, 2, 0)[::-1, ::-1]), exif=exif)


def test_pictures_are_measured_as_they_are_seen_unless_exif_is_ignored(home, own, capsys):
    write_folder(home / "set", {f"{k}.png": upside_down(image) for k, image in enumerate(IMAGES)})
    assert main(["reference", "set", "--out=seen.npz", own]) == 0
    assert "EXIF" not in capsys.readouterr().out
    assert main(["reference", "set", "--out=stored.npz", own, "--exif=ignore"]) == 0
    assert "9 images of set (EXIF orientation is ignored, as EDM's data tool and torchvision do), " in (
        capsys.readouterr().out
    )
    stored = IMAGES[:, :, ::-1, ::-1].reshape(9, -1).astype(float)
    np.testing.assert_allclose(np.load("seen.npz")["mu"], FLAT.mean(0), rtol=1e-12)
    np.testing.assert_allclose(np.load("stored.npz")["mu"], stored.mean(0), rtol=1e-12)
    assert "EXIF orientation is ignored" in str(np.load("stored.npz")["description"])


def test_evaluate_reads_exif_and_names_what_it_leaves_out(home, own, capsys):
    write_folder(home / "seen", {f"{k}.png": png(image) for k, image in enumerate(IMAGES)})
    files = {f"{k}.jfif": upside_down(image) for k, image in enumerate(IMAGES)}
    write_folder(home / "turned", files | {"photo.heic": b"?", "notes.txt": b"?"})
    command = ["evaluate", "--images", "turned", "--reference=seen", own, "--out=results"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Warning: turned: 2 files left out, hidden or of no known kind of image: notes.txt, photo.heic." in said
    assert "EXIF" not in said
    (row,) = csv.DictReader((home / "results" / "results.csv").open())
    assert row["images"] == "9"
    assert float(row["fid"]) < 1e-6
    assert main([*command[:-1], "--exif=ignore"]) == 0
    assert "Warning: turned: EXIF orientation is ignored" in capsys.readouterr().out


def test_a_left_out_file_of_the_reference_is_named(home, own, capsys):
    write_folder(home / "seen", {f"{k}.png": png(image) for k, image in enumerate(IMAGES)} | {"b.xyz": b"?"})
    assert main(["evaluate", "--images", "seen", "--reference=seen", own]) == 0
    said = capsys.readouterr().out
    assert "Reference: 9 images of seen (1 file left out, hidden or of no known kind of image: b.xyz)" in said


def test_the_reference_s_exif_is_ignored_too(home, own, capsys):
    write_folder(home / "set", {f"{k}.png": upside_down(image) for k, image in enumerate(IMAGES)})
    write_folder(home / "stored", {f"{k}.png": png(image[:, ::-1, ::-1]) for k, image in enumerate(IMAGES)})
    command = ["evaluate", "--images", "stored", "--reference=set", own, "--exif=ignore", "--out=results"]
    assert main(command) == 0
    assert "Reference: 9 images of set (EXIF orientation is ignored" in capsys.readouterr().out
    (row,) = csv.DictReader((home / "results" / "results.csv").open())
    assert float(row["fid"]) < 1e-6


@pytest.mark.parametrize("place", ["--images", "--reference"])
def test_an_animation_is_refused(home, own, capsys, place):
    frames = [Image.fromarray(image.transpose(1, 2, 0)) for image in IMAGES[:3]]
    gif = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    write_folder(home / "good", {f"{k}.png": png(image) for k, image in enumerate(IMAGES)})
    write_folder(home / "bad", {"a.gif": gif, "b.png": png(IMAGES[0])})
    sets = {"--images": "good", "--reference": "good", place: "bad"}
    assert main(["evaluate", "--images", sets["--images"], f"--reference={sets['--reference']}", own]) == 2
    assert "bad/a.gif cannot be used: it has 3 frames" in capsys.readouterr().err
