import io
import json
import os
import resource
import stat
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ersde_lit.sampling.output import check_out
from ersde_lit.sampling.writers import open_writer

SEEDS = [3, 4, 5, 1000, 17]
META = {"solver": "er_sde", "nfe": 20, "checkpoint": "é.ckpt"}
OUTS = ["samples", "samples.npz", "samples.zip"]


def sample_images(n=5, channels=3, size=(8, 6)):
    return torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def write(out, images, labels, seeds=SEEDS, overwrite=False, step=2, then=lambda: None):
    with open_writer(out, seeds, META, overwrite) as writer:
        for i in range(0, len(seeds), step):
            part = slice(i, i + step)
            writer.write(images[part], None if labels is None else labels[part], seeds[part])
        then()


def fail():
    raise KeyboardInterrupt


def tree(folder):
    """Every file below `folder` with its bytes, and whether anything was left over."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def decode(data):
    image = Image.open(io.BytesIO(data))
    return image.mode, np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def check_pngs(read, names, images, labels):
    for name, image in zip(names, images, strict=True):
        mode, decoded = decode(read(name))
        assert mode == {1: "L", 3: "RGB"}[len(image)]
        assert np.array_equal(decoded, image.numpy())
    dataset = json.loads(read("dataset.json"))
    assert dataset == {
        "labels": None if labels is None else [list(p) for p in zip(names, labels.tolist(), strict=True)]
    }
    assert json.loads(read("meta.json")) == {**META, "seeds": "3-5,1000,17"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labels", [None, torch.tensor([4, 0, 9, 1, 0])])
class TestRoundTrip:
    def test_folder(self, tmp_path, channels, labels):
        images = sample_images(channels=channels)
        write(tmp_path / "samples", images, labels)
        names = ["000003.png", "000004.png", "000005.png", "001000.png", "000017.png"]
        assert {p.name for p in (tmp_path / "samples").iterdir()} == {*names, "dataset.json", "meta.json"}
        check_pngs(lambda name: (tmp_path / "samples" / name).read_bytes(), names, images, labels)

    def test_zip(self, tmp_path, channels, labels):
        images = sample_images(channels=channels)
        write(tmp_path / "samples.zip", images, labels)
        names = [f"{s // 1000:05d}/img{s:08d}.png" for s in SEEDS]
        with zipfile.ZipFile(tmp_path / "samples.zip") as file:
            assert file.testzip() is None
            assert file.namelist() == [*names, "dataset.json", "meta.json"]
            check_pngs(file.read, names, images, labels)

    def test_npz(self, tmp_path, channels, labels):
        images = sample_images(channels=channels)
        write(tmp_path / "samples.npz", images, labels)
        with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
            assert set(file) == {"arr_0", "meta"} | (set() if labels is None else {"arr_1"})
            assert file["arr_0"].dtype == np.uint8
            assert np.array_equal(file["arr_0"], images.permute(0, 2, 3, 1).numpy())
            if labels is not None:
                assert file["arr_1"].dtype == np.int64
                assert file["arr_1"].tolist() == labels.tolist()
            assert json.loads(str(file["meta"])) == {**META, "seeds": "3-5,1000,17"}


@pytest.mark.parametrize("out", OUTS)
class TestWhole:
    def test_same_bytes_whatever_the_block_size(self, tmp_path, out):
        images, labels = sample_images(), torch.arange(5)
        for step in (2, 5):
            (tmp_path / str(step)).mkdir()
            write(tmp_path / str(step) / out, images, labels, step=step)
        assert tree(tmp_path / "2") == tree(tmp_path / "5")

    def test_nothing_stays_of_a_broken_run(self, tmp_path, out):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / out, sample_images(), None, then=fail)
        assert not list(tmp_path.iterdir())

    def test_nothing_appears_before_the_end(self, tmp_path, out):
        with open_writer(tmp_path / out, SEEDS) as writer:
            writer.write(sample_images(), None, SEEDS)
            assert not (tmp_path / out).exists()
        assert [p.name for p in tmp_path.iterdir()] == [out]

    def test_existing_is_refused_at_once(self, tmp_path, out):
        write(tmp_path / out, sample_images(), None)
        before = tree(tmp_path)
        with pytest.raises(ValueError, match=r"exists; .*--overwrite"), open_writer(tmp_path / out, SEEDS):
            pytest.fail("must not be entered")
        assert tree(tmp_path) == before

    def test_overwrite_replaces_all_of_it(self, tmp_path, out):
        write(tmp_path / out, sample_images(), None)
        other = 255 - sample_images(2)
        write(tmp_path / out, other, None, seeds=[8, 9], overwrite=True)
        (tmp_path / "fresh").mkdir()
        write(tmp_path / "fresh" / out, other, None, seeds=[8, 9])
        fresh = tree(tmp_path / "fresh")
        assert {k: v for k, v in tree(tmp_path).items() if not k.startswith("fresh")} == fresh

    def test_overwrite_that_breaks_leaves_the_old(self, tmp_path, out):
        write(tmp_path / out, sample_images(), None)
        before = tree(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / out, 255 - sample_images(), None, overwrite=True, then=fail)
        assert tree(tmp_path) == before

    def test_what_appears_meanwhile_is_not_overwritten(self, tmp_path, out):
        with pytest.raises(ValueError, match="exists"):
            write(tmp_path / out, sample_images(), None, then=lambda: (tmp_path / out).write_text("somebody else's"))
        assert tree(tmp_path) == {out: b"somebody else's"}

    def test_missing_images_are_an_error(self, tmp_path, out):
        with pytest.raises(ValueError, match="only 2 of 5"), open_writer(tmp_path / out, SEEDS) as writer:
            writer.write(sample_images(2), None, SEEDS[:2])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("seeds", [[4, 3], [3, 5], [3], [3, 4, 5]])
    def test_order_of_the_seeds_is_kept(self, tmp_path, out, seeds):
        with (
            pytest.raises(ValueError, match=r"order of the seeds, 3-4 now"),
            open_writer(tmp_path / out, SEEDS) as writer,
        ):
            writer.write(sample_images(2), None, seeds)

    def test_no_more_images_than_seeds(self, tmp_path, out):
        with pytest.raises(ValueError, match="order of the seeds"), open_writer(tmp_path / out, SEEDS[:2]) as writer:
            writer.write(sample_images(3), None, SEEDS[:2])

    def test_labels_for_all_or_none(self, tmp_path, out):
        with open_writer(tmp_path / out, SEEDS[:2]) as writer:
            writer.write(sample_images(1), torch.tensor([0]), SEEDS[:1])
            with pytest.raises(ValueError, match="label"):
                writer.write(sample_images(1), None, SEEDS[1:2])
            writer.write(sample_images(1), torch.tensor([0]), SEEDS[1:2])

    def test_a_disk_that_refuses_is_one_line(self, tmp_path, out):
        """RLIMIT_FSIZE makes any file above it fail, as a full disk would (Python ignores the signal)."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(ValueError, match=r"cannot be written: File too large$"):
                write(tmp_path / out, sample_images(5, size=(32, 32)), None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not list(tmp_path.iterdir())

    def test_ordinary_permissions(self, tmp_path, out):
        write(tmp_path / out, sample_images(), None)
        (tmp_path / "touched").touch()
        mode = stat.S_IMODE((tmp_path / "touched").stat().st_mode)
        assert stat.S_IMODE((tmp_path / out).stat().st_mode) & 0o666 == mode

    def test_metadata_that_is_no_plain_data_is_refused_first(self, tmp_path, out):
        with pytest.raises(TypeError, match="JSON"), open_writer(tmp_path / out, SEEDS, {"solver": object()}):
            pytest.fail("must not be entered")


@pytest.mark.parametrize(
    "out", ["a.jpg", "a.npy", "er_sde_5.0", "missing/a.npz", "file/a.npz", "file/deep/a", "x" * 300]
)
def test_bad_targets_are_one_line(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^--out ") as error:
        check_out(out)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_unwritable_parent(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ValueError, match="not writable"):
        check_out(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content", [[], ["thesis.tex", "meta.json"], ["000000.png"], ["meta.json", "000000.png", "sub/a.png"]]
)
def test_overwrite_takes_no_folder_but_its_own(tmp_path, content):
    (tmp_path / "samples").mkdir()
    for name in content:
        (tmp_path / "samples" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "samples" / name).touch()
    with pytest.raises(ValueError, match="not a set of samples"):
        check_out(tmp_path / "samples", overwrite=True)


def test_overwrite_takes_no_folder_for_a_file_or_the_reverse(tmp_path):
    (tmp_path / "a.npz").mkdir()
    (tmp_path / "a").touch()
    for name in ("a.npz", "a"):
        with pytest.raises(ValueError, match="not a set of samples"):
            check_out(tmp_path / name, overwrite=True)


def test_zip_is_uncompressed_twice_over(tmp_path):
    blank = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    write(tmp_path / "a.zip", blank, None, seeds=[0])
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
        assert file.getinfo("00000/img00000000.png").file_size > blank.numel()


@pytest.mark.parametrize("out", ["a.zip", "a.npz"])
def test_no_date_gets_into_the_bytes(tmp_path, out):
    write(tmp_path / out, sample_images(), torch.arange(5))
    with zipfile.ZipFile(tmp_path / out) as file:
        assert {info.date_time for info in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_two_channels_go_into_npz_only(tmp_path):
    write(tmp_path / "a.npz", sample_images(channels=2), None)
    for out in ("a", "a.zip"):
        with pytest.raises(ValueError, match="1 or 3 channels"):
            write(tmp_path / out, sample_images(channels=2), None)
