import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from image_sets import edm_files, edm_name, encoded, pixels, png, write_batches, write_folder, write_zip
from PIL import Image
from sklearn.datasets import load_sample_images

from ersde_lit.cli import main
from ersde_lit.data import ImageArray, ImagePairs
from ersde_lit.training import suggestion

IMAGES = pixels(6)
LABELS = [2, 0, 1, 1, 0, 2]
FLAT = IMAGES.reshape(6, -1)
GREY = Image.fromarray(IMAGES[0, 0])


def files(labels: list[int] | None = LABELS, **changes: bytes) -> dict[str, bytes]:
    """EDM's six images, some changed: `i3` is image 3, `json` the labels."""
    names = {"json": "dataset.json"} | {f"i{k}": edm_name(k) for k in range(len(IMAGES))}
    return edm_files(IMAGES, labels) | {names[key]: content for key, content in changes.items()}


def with_pairs(pairs) -> dict[str, bytes]:
    return files(json=json.dumps({"labels": pairs}).encode())


def pairs(*classes) -> list[list]:
    return [[edm_name(k), label] for k, label in enumerate(classes)]


def zipped(content: dict[str, bytes]):
    return lambda folder: write_zip(folder / "set.zip", content)


def unzipped(content: dict[str, bytes]):
    return lambda folder: write_folder(folder / "set", content)


def npz(**arrays):
    def write(folder: Path) -> Path:
        (folder / "set").mkdir()
        np.savez(folder / "set" / "train_data_batch_1.npz", **arrays)
        return folder / "set"

    return write


def batch(data=FLAT, labels=(1, 2, 3, 4, 5, 1000)):
    return npz(data=data, labels=labels)


def cut(make, name: str, keep: int):
    """The same, with a file of it that ends too soon."""

    def write(folder: Path) -> Path:
        path = make(folder)
        file = path if path.name == name else path / name
        content = file.read_bytes()
        file.write_bytes(content[:keep])
        return path

    return write


def flipped(make, name: str, position: int):
    """The same, with a byte of a file that is another."""

    def write(folder: Path) -> Path:
        path = make(folder)
        file = path if path.name == name else path / name
        content = bytearray(file.read_bytes())
        content[position] ^= 1
        file.write_bytes(content)
        return path

    return write


def twice(folder: Path) -> Path:
    path = write_zip(folder / "set.zip", files())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(edm_name(3), png(IMAGES[0]))
    return path


def two_batches(missing: int):
    def write(folder: Path) -> Path:
        write_batches(folder / "set", [IMAGES, IMAGES, IMAGES], [[1] * 6] * 3)
        (folder / "set" / f"train_data_batch_{missing}.npz").unlink()
        return folder / "set"

    return write


def empty_class(folder: Path) -> Path:
    (folder / "set" / "zebra").mkdir(parents=True)
    return write_folder(folder / "set", {"cat/1.png": png(IMAGES[0])})


def rgba(alpha: int) -> bytes:
    image = Image.fromarray(IMAGES[0].transpose(1, 2, 0)).convert("RGBA")
    image.putpixel((3, 3), (0, 0, 0, alpha))
    return encoded(image)


TRUNCATED = png(IMAGES[3])[:-40]
IMAGE_3 = f"{edm_name(3)} in "
BATCH_1 = "set/train_data_batch_1.npz"
BAD = {
    "nothing there": (lambda folder: folder / "set", "there is no file or folder", "/set"),
    "another kind of file": (lambda folder: write_folder(folder, {"set.tar": b"?"}) / "set.tar", "set.tar is none of"),
    "empty folder": (lambda folder: write_folder(folder / "set", {"a.txt": b"?"}), "/set holds no image"),
    "empty zip": (zipped({}), "set.zip holds no image"),
    "truncated zip": (cut(zipped(files()), "set.zip", -30), "set.zip is damaged, cut short"),
    "no zip": (lambda folder: write_folder(folder, {"set.zip": b"PK?"}) / "set.zip", "set.zip is damaged"),
    "damaged zip": (flipped(zipped(files()), "set.zip", 200), f"{edm_name(0)} in ", "cannot be used: Bad CRC-32"),
    "truncated image": (zipped(files(i3=TRUNCATED)), IMAGE_3, "cannot be used", "truncated"),
    "empty image": (unzipped(files(i3=b"")), f"set/{edm_name(3)} cannot be used: it is no image"),
    "text for an image": (unzipped(files(i3=b"<html>")), f"set/{edm_name(3)} cannot be used: it is no image"),
    "sizes differ": (zipped(files(i3=png(pixels(1, 16)[0]))), IMAGE_3, "is 16x16, not 8x8 as --size"),
    "transparent": (zipped(files(i3=rgba(254))), IMAGE_3, "is transparent: put it on a background"),
    "16 bits": (zipped(files(i3=encoded(GREY.convert("I;16")))), IMAGE_3, "its pixels are of the kind I;16"),
    "the same name twice": (twice, "set.zip: ", edm_name(3), "is there twice"),
    "no dataset.json in a zip": (
        lambda folder: write_zip(folder / "set.zip", {"00000/img00000000.png": png(IMAGES[0])}),
        "set.zip is laid out as EDM's data sets are, but has no dataset.json", "--unlabelled",
    ),
    "no dataset.json in a folder": (
        lambda folder: write_folder(folder / "set", {"00000/img00000000.png": png(IMAGES[0])}),
        "/set is laid out as EDM's data sets are, but has no dataset.json", "--unlabelled",
    ),
    "dataset.json is no JSON": (unzipped(files(json=b"{")), 'set/dataset.json is not {"labels":'),
    "dataset.json without labels": (zipped(files(json=b"{}")), "dataset.json in ", 'is not {"labels":'),
    "dataset.json with odd pairs": (zipped(with_pairs([1, 2])), "dataset.json in ", 'is not {"labels":'),
    "a label too few": (zipped(with_pairs(pairs(0, 1, 2, 0, 1))), f"has no label for {edm_name(5)} (1 of 6 images"),
    "a label too many": (zipped(with_pairs(pairs(*LABELS, 1))), f"7 labels for 6 images: {edm_name(6)} is not there"),
    "two labels for one": (
        zipped(with_pairs([*pairs(*LABELS), [edm_name(2), 0]])), f"two labels for {edm_name(2)}"
    ),
    "a negative label": (zipped(with_pairs(pairs(0, -1, 2, 0, 1, 1))), f"label of {edm_name(1)} is -1, not a class"),
    "a label that is no number": (
        zipped(with_pairs(pairs(0, 1, [0.5, 0.5], 0, 1, 1))), f"label of {edm_name(2)} is [0.5, 0.5], not a class"
    ),
    "images without class folders": (unzipped({"a.png": png(IMAGES[0])}), "set/a.png is in no class folder"),
    "the folder above": (unzipped({"train/cat/a.png": png(IMAGES[0])}), "set/train is no class folder"),
    "a class without images": (empty_class, "the class folder ", "set/zebra holds no image"),
    "too small an image": (
        unzipped({"cat/a.png": png(pixels(1, 7)[0]), "cat/b.png": png(IMAGES[0])}),
        "set/cat/a.png is 7x7: too small for --size 8",
    ),
    "no array of labels": (npz(data=FLAT), f"{BATCH_1} has no array labels"),
    "no array of data": (npz(images=IMAGES, labels=[1] * 6), f"{BATCH_1} has no array data"),
    "label 0": (batch(labels=[1, 2, 0, 4, 5, 6]), f"{BATCH_1}: labels run from 0 to 6, not within 1 .. 1000"),
    "label 1001": (batch(labels=[1, 2, 1001, 4, 5, 6]), f"{BATCH_1}: labels run from 1 to 1001, not within 1 .. 1000"),
    "labels for other images": (batch(labels=[1, 2]), f"{BATCH_1}: `labels` is int64 (2,), not one", "6 images"),
    "labels that are no whole numbers": (batch(labels=[0.5] * 6), f"{BATCH_1}: `labels` is float64"),
    "pickled labels": (batch(labels=np.array([1, None] * 3, object)), f"{BATCH_1}: labels cannot be used: it is of"),
    "pickled data": (batch(data=np.array([[None]] * 6, object)), f"{BATCH_1}: `data` is object, not uint8"),
    "data that are no bytes": (batch(data=np.zeros((6, 192), np.float32)), f"{BATCH_1}: `data` is float32, not uint8"),
    "data of another size": (batch(data=pixels(6, 16).reshape(6, -1)), BATCH_1, "images of 16x16: say --size 16"),
    "data of another shape": (batch(data=IMAGES), BATCH_1, "`data` holds (6, 3, 8, 8), not"),
    "truncated npz": (cut(batch(), "train_data_batch_1.npz", -100), f"{BATCH_1} is damaged"),
    "damaged npz": (
        flipped(batch(pixels(40).reshape(40, -1), [7] * 40), "train_data_batch_1.npz", 6000),
        f"{BATCH_1}: data cannot be used", "Bad CRC-32",
    ),
    "a batch is missing": (two_batches(2), "set/train_data_batch_2.npz is missing"),
    "batches as pickles": (unzipped({"train_data_batch_1": b"\x80\x02."}), "set/train_data_batch_1 is a pickle"),
}  # fmt: skip


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_gets_one_line_that_names_the_file(tmp_path, capsys, case: str) -> None:
    make, *expected = BAD[case]
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    before = snapshot(tmp_path / "in")
    assert main(["data", str(source), f"--out={tmp_path / 'out'}", "--size=8"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ersde_lit: data: ")
    assert error.count("\n") == 1
    assert [part for part in expected if part not in error] == []
    assert not (tmp_path / "out").exists()
    assert snapshot(tmp_path / "in") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size=0"], "--size"),
        (["--size=big"], "--size"),
        (["--resize=cubic"], "--resize: "),
        (["--channels=2"], "--channels: "),
        (["--val_size=-1"], "--val_size"),
        (["--val_size=6"], "hold out 0 to 5 of the 6 images"),
        (["--out=there"], "there exists"),
        (["--config_out=there/a.txt"], "there/a.txt exists"),
        (["--config_out=new.yaml", "--val_size=0"], "--val_size 0"),
        (["--out=taken"], "taken.partial is in the way"),
        (["--step=3"], "unrecognized arguments"),
    ],
)
def test_bad_options_get_one_line(tmp_path, capsys, monkeypatch, options: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_zip(Path("set.zip"), files())
    write_folder(Path("there"), {"a.txt": b"kept"})
    write_folder(Path("taken.partial"), {"a.txt": b"kept"})
    before = snapshot(tmp_path)
    assert main(["data", "set.zip", "--size=8", "--out=new", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ersde_lit: data: ")
    assert message in error
    assert error.count("\n") == 1
    assert snapshot(tmp_path) == before


def test_converts_says_so_and_is_quiet_without_a_terminal(tmp_path, capsys) -> None:
    source, out = write_zip(tmp_path / "set.zip", files()), tmp_path / "out"
    assert main(["data", str(source), f"--out={out}", "--size=8", "--val_size=2"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out == f"6 images of 3 classes in {out}, the last 2 of them held out\n"
    data = ImageArray(str(out))
    assert (data.image_shape, data.num_classes) == ((3, 8, 8), 3)
    assert [len(data.split(name).labels) for name in ("train", "val", "test")] == [4, 2, 2]
    assert sorted(path.name for path in out.iterdir()) == ["images.npy", "info.json", "labels.npy"]


@pytest.mark.parametrize("make", [zipped(files()), unzipped(files()), batch()], ids=["zip", "folder", "npz"])
def test_a_finished_conversion_is_left_alone(tmp_path, capsys, make) -> None:
    command = ["data", str(make(tmp_path)), f"--out={tmp_path / 'out'}", "--size=8", "--val_size=2"]
    assert main(command) == 0
    before, said = snapshot(tmp_path), capsys.readouterr().out
    assert "images of" in said
    assert main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'} is finished: nothing to do\n"
    for change in ("--val_size=3", "--seed=1", "--unlabelled"):
        assert main([*command, change]) == 2
        assert "out exists: choose another name" in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    (tmp_path / "out" / "images.npy").write_bytes(b"")
    assert main(command) == 2
    assert "out/images.npy is missing, cut short or damaged" in capsys.readouterr().err


@pytest.mark.parametrize("inside", ["set/out", "set/deep/out", "done/out", "half.partial/out"])
def test_nothing_is_put_inside_a_data_set(tmp_path, capsys, inside: str) -> None:
    source = write_folder(tmp_path / "set", files())
    assert main(["data", str(source), f"--out={tmp_path / 'done'}", "--size=8"]) == 0
    write_folder(tmp_path / "half.partial", {"info.json": b"", "images.npy": b""})
    (source / "deep").mkdir()
    before = snapshot(tmp_path)
    assert main(["data", str(source), f"--out={tmp_path / inside}", "--size=8"]) == 2
    assert f"{inside} would lie inside the data set {tmp_path / inside.split('/')[0]}: " in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    assert main(["data", str(source), f"--out={tmp_path / 'beside'}", "--size=8"]) == 0


def test_a_converted_folder_is_checked(tmp_path, capsys) -> None:
    source, out = write_zip(tmp_path / "set.zip", files()), tmp_path / "out"
    assert main(["data", str(source), f"--out={out}", "--size=8"]) == 0
    capsys.readouterr()
    assert main(["data", str(out)]) == 0
    assert "is complete: 6 images (3, 8, 8), 3 classes" in capsys.readouterr().out
    with (out / "images.npy").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert main(["data", str(out)]) == 2
    assert f"{out}/images.npy is damaged: its checksum" in capsys.readouterr().err
    assert main(["data", str(source)]) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_grey_and_unlabelled(tmp_path) -> None:
    source = write_folder(tmp_path / "set", {"deep/down/a.png": encoded(GREY), "b.jpg": encoded(GREY, "jpeg")})
    options = ["--size=8", "--channels=1", "--unlabelled"]
    assert main(["data", str(source), f"--out={tmp_path / 'out'}", "--val_size=1", *options]) == 0
    data = ImageArray(str(tmp_path / "out"))
    assert (data.image_shape, data.num_classes) == ((1, 8, 8), 0)
    assert data.split("train").labels.tolist() == [-1]


def write_pairs(folder: Path) -> list[str]:
    """Photographs with brighter ones beside them, of two sizes; returns the command that converts them."""
    photographs = {f"{k}.png": pixels(1, 8 + 8 * (k % 2), seed=k)[0] // 2 for k in range(6)}
    for name, shift in (("bright", 40), ("clean", 0)):
        write_folder(folder / name, {key: png(image + np.uint8(shift)) for key, image in photographs.items()})
    places = [str(folder / "bright"), f"--clean={folder / 'clean'}", f"--out={folder / 'made' / 'pairs'}"]
    return ["data", *places, "--size=8", "--val_size=2"]


def test_pairs_are_converted_alike_and_trained_on(tmp_path, capsys) -> None:
    command = write_pairs(tmp_path)
    assert main(command) == 0
    said, made = capsys.readouterr().out, tmp_path / "made" / "pairs"
    for name in ("degraded", "clean"):
        assert f"6 images of 0 classes in {made / name}, the last 2 of them held out\n" in said
    data = ImagePairs(str(made / "degraded"), str(made / "clean"), batch_size=4)
    for clean, _, degraded in [*data.train_dataloader(), *data.val_dataloader()]:
        torch.testing.assert_close(degraded - clean, torch.full_like(clean, 40 / 127.5), atol=1.01 / 127.5, rtol=0)
    shutil.rmtree(made / "clean")
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(f"{made / 'degraded'} is finished: nothing to do\n6 images")


def test_pairs_keep_their_size_and_colour_unless_told_otherwise(tmp_path, capsys) -> None:
    for name, shift in (("bright", 40), ("clean", 0)):
        write_folder(
            tmp_path / name, {f"{k}.png": png(pixels(1, 12, 1, seed=k)[0] // 2 + np.uint8(shift)) for k in range(3)}
        )
    where = [str(tmp_path / "bright"), f"--clean={tmp_path / 'clean'}", f"--out={tmp_path / 'made'}"]
    assert main(["data", *where, "--val_size=1"]) == 0
    data = ImagePairs(str(tmp_path / "made/degraded"), str(tmp_path / "made/clean"), batch_size=2)
    assert data.image_shape == (1, 12, 12)
    command = write_pairs(tmp_path / "several")
    command.remove("--size=8")
    assert main(command) == 2
    assert "not all squares of one size and colour: give --size and --channels" in capsys.readouterr().err
    for name in ("bright", "clean"):  # one in colour among the grey ones
        write_folder(tmp_path / name, {"1.png": png(pixels(1, 12, 3)[0])})
    assert main(["data", *where, "--size=12"]) == 2
    assert "give --size and --channels" in capsys.readouterr().err
    assert not (tmp_path / "several/made").exists()


PAIRS = {
    "a name in one folder only": ("8.png", png(IMAGES[0]), [], "1 images without a partner of the same name: 8.png"),
    "sizes that differ": ("1.png", png(IMAGES[0]), [], "1.png is 16x16 (colour) in "),
    "no image": ("1.png", b"?", [], "clean/1.png cannot be used"),
    "no folder": ("1.png", b"?", ["--clean=absent"], "there is no file or folder absent"),
    "a configuration": ("a.txt", b"?", ["--config_out=a.yaml"], "--config_out is not for pairs"),
    "inside": ("a.txt", b"?", ["--out=clean/pairs"], "would lie inside the data set"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pairs_that_are_none_get_one_line_and_nothing_is_written(tmp_path, capsys, monkeypatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    name, content, options, message = PAIRS[case]
    command = write_pairs(tmp_path)
    write_folder(tmp_path / "clean", {name: content})
    before = snapshot(tmp_path)
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "made").exists()


def turned(image: np.ndarray, orientation: int, kind: str = "png") -> bytes:
    """Stored so that it is `image` once it is turned as its EXIF says."""
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(image.transpose(1, 2, 0)).transpose(back[orientation]), kind, exif=exif)


def test_pictures_are_turned_as_their_exif_says_before_they_are_cropped(tmp_path, capsys) -> None:
    tall = np.concatenate([pixels(1, 16)[0], np.zeros((3, 7, 16), np.uint8)], 1)  # 23x16, an odd rest
    plain = write_folder(tmp_path / "plain", {"cat/a.png": png(tall), "cat/b.png": png(tall)})
    exif = write_folder(tmp_path / "exif", {"cat/a.png": turned(tall, 6), "cat/b.tif": turned(tall, 8, "tiff")})
    stored = {}
    for source, options in ((plain, []), (exif, []), (exif, ["--exif=ignore"])):
        out = tmp_path / f"out{len(stored)}"
        assert main(["data", str(source), f"--out={out}", "--size=8", "--val_size=0", *options]) == 0
        stored[len(stored)] = np.load(out / "images.npy"), json.loads((out / "info.json").read_text())
        assert ("note: EXIF orientation is ignored" in capsys.readouterr().out) == bool(options)
    assert np.array_equal(stored[1][0], stored[0][0])
    assert not np.array_equal(stored[2][0], stored[0][0])
    assert "EXIF" in stored[2][1]["notes"][0]
    assert stored[1][1]["source"] != stored[2][1]["source"]


def test_sizes_are_those_of_the_turned_picture(tmp_path, capsys) -> None:
    wide = np.concatenate([IMAGES[0], IMAGES[1]], 2)  # 8x16
    source = write_zip(tmp_path / "set.zip", files(i3=turned(wide, 6)))
    assert main(["data", str(source), f"--out={tmp_path / 'out'}", "--size=8"]) == 2
    assert "is 16x8, not 8x8" in capsys.readouterr().err


def test_what_is_left_out_is_named_and_every_kind_counts(tmp_path, capsys) -> None:
    kinds = {"a.jfif": "jpeg", "b.JPE": "jpeg", "c.avif": "avif", "d.jp2": "jpeg2000", "e.tga": "tga", "f.pnm": "ppm"}
    image = Image.fromarray(IMAGES[0].transpose(1, 2, 0))
    content = {f"cat/{name}": encoded(image, kind) for name, kind in kinds.items()}
    source = write_folder(tmp_path / "set", content | {"cat/photo.heic": b"?"})
    assert main(["data", str(source), f"--out={tmp_path / 'out'}", "--size=8"]) == 0
    said = capsys.readouterr().out
    assert "note: 1 file left out, hidden or of no known kind of image: cat/photo.heic\n" in said
    assert "6 images of 1 classes" in said


def test_empty_classes_are_named(tmp_path, capsys) -> None:
    source = write_zip(tmp_path / "set.zip", files([0, 7, 0, 7, 0, 7]))
    assert main(["data", str(source), f"--out={tmp_path / 'out'}", "--size=8", "--val_size=1"]) == 0
    assert "note: classes 1 to 6 hold no image\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "info.json").read_text())["notes"] == ["classes 1 to 6 hold no image"]
    few = batch(labels=[1, 3, 3, 3, 1000, 999])(tmp_path)
    assert main(["data", str(few), f"--out={tmp_path / 'few'}", "--size=8"]) == 0
    assert "note: classes 1, 3 to 997 hold no image\n" in capsys.readouterr().out


def test_folders_named_by_numbers_are_their_own_labels(tmp_path, capsys) -> None:
    names = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "11"]
    source = write_folder(tmp_path / "set", {f"{name}/a.png": png(IMAGES[0]) for name in names})
    assert main(["data", str(source), f"--out={tmp_path / 'out'}", "--size=8", "--val_size=0"]) == 0
    said = capsys.readouterr().out
    assert "note: class 10 holds no image\n" in said
    assert "labels: 0 = 0, 1 = 1, 2 = 2, 3 = 3" in said
    assert sorted(np.load(tmp_path / "out" / "labels.npy").tolist()) == [*map(int, names)]


def test_names_of_classes_are_printed_with_their_labels(tmp_path, capsys) -> None:
    source = write_folder(tmp_path / "set", {f"n{k:02d}/a.png": png(IMAGES[0]) for k in range(30)})
    assert main(["data", str(source), f"--out={tmp_path / 'out'}", "--size=8"]) == 0
    assert "labels: 0 = n00, 1 = n01, 2 = n02, ..., 28 = n28, 29 = n29\n" in capsys.readouterr().out


def test_after_a_bad_picture_is_deleted_the_same_command_works(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("ersde_lit.data.convert.BLOCK", 1)
    source = write_folder(tmp_path / "set", {f"cat/{k}.png": png(image) for k, image in enumerate(IMAGES)})
    (source / "cat" / "9.png").write_bytes(TRUNCATED)
    command = ["data", str(source), f"--out={tmp_path / 'out'}", "--size=8", "--val_size=0"]
    assert main(command) == 2
    (source / "cat" / "9.png").unlink()
    assert main([*command, "--size=4"]) == 2  # of another command
    assert "of another, unfinished conversion" in capsys.readouterr().err
    assert main(command) == 0
    assert "the data set has changed since" in capsys.readouterr().out
    assert np.array_equal(np.load(tmp_path / "out" / "images.npy"), IMAGES)
    assert main(["data", str(tmp_path / "out")]) == 0


@pytest.fixture
def quick_timing(monkeypatch) -> None:
    """A machine that trains the smallest network at 1,000 images a second, and any other at 1."""
    monkeypatch.setattr(suggestion, "measure_speed", lambda *args: 1000.0)
    monkeypatch.setattr(
        suggestion.suggest, "__defaults__", (lambda module, batch: 1000.0 if module.network.width == 32 else 1.0,)
    )


@pytest.mark.usefixtures("quick_timing", "cache")
@pytest.mark.parametrize("form", ["folders", "zip", "npz", "npz without classes"])
def test_own_images_are_trained_in_two_commands(tmp_path, capsys, monkeypatch, form: str) -> None:
    monkeypatch.chdir(tmp_path)
    labels = [0, 1] * 60
    images = (pixels(120) // 2 + 100 * np.array(labels)[:, None, None, None]).astype(np.uint8)
    if form == "folders":
        source = Path("photos")
        write_folder(
            source, {f"{'ab'[k]}/{n}.png": png(image) for n, (image, k) in enumerate(zip(images, labels, strict=True))}
        )
    elif form == "zip":
        source = write_zip(Path("set.zip"), edm_files(images, labels))
    else:
        source = Path("set.npz")
        arrays = {"arr_0": images.transpose(0, 2, 3, 1)} | ({} if "without" in form else {"arr_1": np.array(labels)})
        np.savez(source, **arrays)
    command = ["data", str(source), "--out=data/mine", "--size=8", "--config_out=configs/mine.yaml", "--minutes=0.02"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.endswith("Next:\npython -m ersde_lit fit --config configs/mine.yaml\n")
    written = yaml.safe_load(Path("configs/mine.yaml").read_text())
    classes = 0 if "without" in form else 2
    assert written["model"]["network"]["init_args"]["num_classes"] == classes
    assert written["model"]["sigma_data"] == pytest.approx(np.std(images / 127.5 - 1), abs=0.05)
    assert ("callbacks" in written["trainer"]) == bool(classes)
    assert ("no FID" in said) == (not classes)
    tiny = ["--model.network.init_args.width=8", "--model.network.init_args.head_width=8", "--trainer.max_epochs=1"]
    assert (
        main(
            [
                "fit",
                "--config",
                "configs/mine.yaml",
                *tiny,
                "--trainer.accelerator=cpu",
                "--trainer.enable_progress_bar=false",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "checkpoint  runs/mine/checkpoints/last.ckpt" in out
    assert ("6 real images: " in out) == bool(classes)


@pytest.mark.usefixtures("quick_timing")
def test_a_configuration_is_written_for_a_folder_that_was_converted_before(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_zip(Path("set.zip"), files())
    assert main(["data", "set.zip", "--out=data/a/mine", "--size=8"]) == 0
    for place, arguments in (("checked", ["data/a/mine"]), ("again", ["set.zip", "--out=data/a/mine", "--size=8"])):
        assert main(["data", *arguments, f"--config_out=new/{place}.yaml"]) == 0
        written = yaml.safe_load(Path(f"new/{place}.yaml").read_text())
        assert written["data"]["init_args"]["root"] == "data/a/mine"
        assert written["data"]["init_args"]["batch_size"] == 1  # of five training images


@pytest.mark.slow
def test_crops_of_photographs_are_trained_in_a_minute(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
        Path("photos", name).mkdir(parents=True)
        for n, (top, left) in enumerate((t, x) for t in range(0, 364, 13) for x in range(0, 576, 36)):
            Image.fromarray(photograph[top : top + 64, left : left + 64]).save(f"photos/{name}/{n}.png")
    assert (
        main(["data", "photos", "--out=data/mine", "--size=32", "--config_out=configs/mine.yaml", "--minutes=1"]) == 0
    )
    assert main(["fit", "--config=configs/mine.yaml", "--trainer.accelerator=cpu"]) == 0
    out = capsys.readouterr().out
    fids = [float(row.split("│")[-2].split()[0]) for row in out.splitlines() if row.startswith("│ default")]
    assert fids  # one alone where the machine is slow or busy
    assert fids[-1] <= fids[0]
    assert "best        runs/mine/checkpoints/best.ckpt" in out
