import io
import json
import shutil
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy
from PIL import Image

from ersde_lit.sampling.formats import LARGEST_PICTURE, About, Folder, Npz, Picture, Zip, format_of, read_meta

SEEDS = [3, 4, 5, 1000, 17]
META = {"seeds": "3-5,1000,17", "options": {"nfe": 20}, "checkpoints": {}, "paths": {"ckpt_path": "é.ckpt"}}
OUTS = ["samples", "samples.npz", "samples.zip", "samples.png"]


def pixels(n: int = 5, channels: int = 3, size: tuple[int, int] = (8, 6)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *size, channels), dtype=np.uint8)


def write(path: Path, images: np.ndarray, labels=None, seeds=SEEDS, step: int = 2, meta=META, **options) -> None:
    kept_as = format_of(path, **options)
    parts = [slice(i, i + step) for i in range(0, len(seeds), step)]
    blocks = (kept_as.encode(images[part], seeds[part]) for part in parts)
    kept_as.write(path, blocks, About(seeds, labels, json.dumps(meta)))


def decode(data: bytes) -> tuple[str, np.ndarray]:
    image = Image.open(io.BytesIO(data))
    return image.mode, np.atleast_3d(np.asarray(image))


def check_pngs(read, names, images, labels) -> None:
    for name, image in zip(names, images, strict=True):
        mode, decoded = decode(read(name))
        assert mode == {1: "L", 3: "RGB"}[image.shape[-1]]
        assert np.array_equal(decoded, image)
    pairs = None if labels is None else [list(pair) for pair in zip(names, labels, strict=True)]
    assert json.loads(read("dataset.json")) == {"labels": pairs}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [None, [4, 0, 9, 1, 0]])
class TestRoundTrip:
    def test_folder(self, tmp_path, channels, labels) -> None:
        images = pixels(channels=channels)
        write(tmp_path / "a", images, labels)
        names = ["000003.png", "000004.png", "000005.png", "001000.png", "000017.png"]
        assert {p.name for p in (tmp_path / "a").iterdir()} == {*names, "dataset.json", "meta.json"}
        check_pngs(lambda name: (tmp_path / "a" / name).read_bytes(), names, images, labels)

    def test_folder_of_folders(self, tmp_path, channels, labels) -> None:
        images = pixels(channels=channels)
        write(tmp_path / "a", images, labels, subdirs=True)
        names = [f"{'001000' if seed == 1000 else '000000'}/{seed:06d}.png" for seed in SEEDS]
        check_pngs(lambda name: (tmp_path / "a" / name).read_bytes(), names, images, labels)
        assert len([p for p in (tmp_path / "a").rglob("*") if p.is_file()]) == 7

    def test_zip(self, tmp_path, channels, labels) -> None:
        images = pixels(channels=channels)
        write(tmp_path / "a.zip", images, labels)
        names = [f"{seed // 1000:05d}/img{seed:08d}.png" for seed in SEEDS]
        with zipfile.ZipFile(tmp_path / "a.zip") as file:
            assert file.testzip() is None
            assert file.namelist() == [*names, "dataset.json", "meta.json"]
            check_pngs(file.read, names, images, labels)

    def test_npz(self, tmp_path, channels, labels) -> None:
        images = pixels(channels=channels)
        write(tmp_path / "a.npz", images, labels)
        with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
            assert set(file) == {"arr_0", "meta"} | (set() if labels is None else {"arr_1"})
            assert file["arr_0"].dtype == np.uint8
            assert np.array_equal(file["arr_0"], images)
            if labels is not None:
                assert file["arr_1"].dtype == np.int64
                assert file["arr_1"].tolist() == labels

    def test_picture(self, tmp_path, channels, labels) -> None:
        images = pixels(channels=channels, size=(32, 32))
        write(tmp_path / "a.png", images, labels, columns=3)
        _, picture = decode((tmp_path / "a.png").read_bytes())
        assert picture.shape == (2 * 34, 3 * 34, channels)
        for number, image in enumerate(images):
            row, column = divmod(number, 3)
            tile = picture[34 * row + 1 :, 34 * column + 1 :][:32, :32]
            assert np.array_equal(tile, image)

    def test_picture_of_one(self, tmp_path, channels, labels) -> None:
        image = pixels(1, channels)
        write(tmp_path / "a.png", image, labels, seeds=[7])
        assert np.array_equal(decode((tmp_path / "a.png").read_bytes())[1], image[0])


def others(folder: Path) -> Iterator[Path]:
    """Somebody's files: an array, arrays, an archive, a picture, a PNG cut short."""
    with (folder / "array").open("wb") as file:
        np.save(file, np.zeros(3))
    with (folder / "arrays").open("wb") as file:
        np.savez(file, arr_0=np.zeros(3))
    with zipfile.ZipFile(folder / "archive", "w") as archive:
        archive.writestr("thesis.tex", "ten years")
    Image.new("L", (8, 8)).save(folder / "picture", "png")
    (folder / "cut").write_bytes((folder / "picture").read_bytes()[:20])
    for name in ("array", "arrays", "archive", "picture", "cut"):
        yield folder / name


@pytest.mark.parametrize("out", OUTS)
class TestEvery:
    def test_same_bytes_whatever_the_block_size(self, tmp_path, out) -> None:
        for step in (2, 5):
            (tmp_path / str(step)).mkdir()
            write(tmp_path / str(step) / out, pixels(), [0, 1, 2, 3, 4], step=step)
        one, other = (
            {p.name: p.read_bytes() for p in (tmp_path / step).rglob("*") if p.is_file()} for step in ("2", "5")
        )
        assert one == other

    def test_the_description_comes_back(self, tmp_path, out) -> None:
        write(tmp_path / out, pixels())
        assert read_meta(tmp_path / out) == META

    def test_a_damaged_file_has_none(self, tmp_path, out) -> None:
        write(tmp_path / out, pixels())
        damaged = tmp_path / out / "meta.json" if out == "samples" else tmp_path / out
        damaged.write_bytes(damaged.read_bytes()[:40])
        with pytest.raises(ValueError, match=r"is damaged, or holds no images"):
            read_meta(tmp_path / out)

    @pytest.mark.parametrize("meta", [[], {"seeds": 3}, {"seeds": "0", "options": {}, "checkpoints": []}, {"nfe": 20}])
    def test_a_file_of_something_else_has_none(self, tmp_path, out, meta) -> None:
        write(tmp_path / out, pixels(), meta=meta)
        with pytest.raises(ValueError, match=r"is damaged, or holds no images"):
            read_meta(tmp_path / out)

    def test_only_sets_of_samples_are_held(self, tmp_path, out) -> None:
        path, kept_as = tmp_path / out, format_of(out)
        write(path, pixels())
        assert kept_as.holds(path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert not kept_as.holds(path)
        for other in others(tmp_path):
            other.replace(path)
            assert not kept_as.holds(path)
            with pytest.raises(ValueError, match="is damaged, or holds no images"):
                read_meta(path)

    def test_nothing_there(self, tmp_path, out) -> None:
        with pytest.raises(ValueError, match="there is nothing at"):
            read_meta(tmp_path / out)


@pytest.mark.parametrize("out", ["a", "a.npz", "a.zip"])
def test_no_more_than_a_block_is_held_in_memory(tmp_path, out) -> None:
    kept_as, images, count = format_of(out), pixels(1, size=(256, 256)), 64  # 200 kB each, noise: no smaller as PNG
    kept_as.encode(images, [0])  # imports
    tracemalloc.start()
    blocks = (kept_as.encode(images, [seed]) for seed in range(count))
    kept_as.write(tmp_path / out, blocks, About(range(count), None, "{}"))
    assert tracemalloc.get_traced_memory()[1] < 8 * images.nbytes
    tracemalloc.stop()


def test_pickles_are_not_read(tmp_path) -> None:
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "canary",)

    np.savez(tmp_path / "a.npz", meta=np.array([Hostile()], dtype=object))
    with pytest.raises(ValueError, match="is damaged"):
        read_meta(tmp_path / "a.npz")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(("out", "entry"), [("a.zip", "meta.json"), ("a.npz", "meta.npy")])
def test_a_description_that_unpacks_to_more_than_its_file_is_not_read(tmp_path, out, entry) -> None:
    file = io.BytesIO()
    npy.write_array(file, np.array(json.dumps(META) + " " * 10**6))
    text = file.getvalue() if out == "a.npz" else (json.dumps(META) + " " * 10**6).encode()
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / out, "w", how) as archive:
            archive.writestr(entry, text)
        with pytest.raises(ValueError, match="is damaged") if how else nullcontext():
            assert read_meta(tmp_path / out) == META


def test_the_ending_decides() -> None:
    assert [type(format_of(out)) for out in ("a", "a.ZIP", "a.npz", "x.y/a.png")] == [Folder, Zip, Npz, Picture]
    assert format_of("a.png", columns=3, subdirs=False) == Picture(3)
    for out in ("a.jpg", "a.npy", "er_sde_5.0"):
        with pytest.raises(ValueError, match="unknown ending"):
            format_of(out)
    for out, options in (("a", {"columns": 3}), ("a.npz", {"subdirs": True}), ("a.zip", {"subdirs": True})):
        with pytest.raises(ValueError, match="is not for --out"):
            format_of(out, **options)


def test_what_a_format_cannot_hold_is_known_before() -> None:
    for kept_as in (Folder(), Zip(), Picture()):
        kept_as.check(10, (3, 8, 8))
        with pytest.raises(ValueError, match="1 or 3 channels"):
            kept_as.check(1, (2, 8, 8))
    Npz().check(1, (2, 8, 8))
    with pytest.raises(ValueError, match="too many for one picture"):
        Picture().check(LARGEST_PICTURE // 64 + 1, (1, 8, 8))


def test_zip_is_uncompressed_twice_over(tmp_path) -> None:
    blank = np.zeros((1, 64, 64, 3), np.uint8)
    write(tmp_path / "a.zip", blank, seeds=[0])
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
        assert file.getinfo("00000/img00000000.png").file_size > blank.size


@pytest.mark.parametrize("out", ["a.zip", "a.npz"])
def test_no_date_gets_into_the_bytes(tmp_path, out) -> None:
    write(tmp_path / out, pixels(), [0, 1, 2, 3, 4])
    with zipfile.ZipFile(tmp_path / out) as file:
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
