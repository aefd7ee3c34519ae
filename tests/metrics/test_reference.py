import pickle
import re
import sys
import zipfile

import numpy as np
import pytest
import torch
from image_sets import edm_files, png, write_folder
from projection import Projection, some_images

from ersde_lit.data import ImageArray, ImageDataModule, Split
from ersde_lit.data.convert import convert, draw_held_out
from ersde_lit.data.opening import open_source
from ersde_lit.metrics import (
    Features,
    Reference,
    Scores,
    image_files,
    read_reference,
    reference_of,
    statistics,
    write_reference,
)


class Noise(ImageDataModule):
    image_shape, num_classes = (2, 4, 4), 2

    def __init__(self, seed=0, count=120):
        super().__init__()
        self.seed, self.count = seed, count

    def load(self):
        images = some_images(self.count, self.seed)
        return dict.fromkeys(("train", "val", "test"), Split(images, torch.arange(self.count) % 2))


class Colours(Features):
    """Of 3x4x4 images: what lies on disk."""

    num_features = 48

    def forward(self, images):
        return images.flatten(1).float()


IMAGES = torch.randint(0, 256, (60, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
NHWC = IMAGES.transpose(0, 2, 3, 1)
MU, SIGMA = IMAGES.reshape(60, -1).mean(0), np.cov(IMAGES.reshape(60, -1).astype(float), rowvar=False)


def same(a, b):
    assert torch.equal(a.statistics.mean, b.statistics.mean)
    assert torch.equal(a.statistics.cov, b.statistics.cov)
    assert (a.num_images, a.fingerprint) == (b.num_images, b.fingerprint)
    assert torch.equal(a.features, b.features)


@pytest.fixture
def passes(monkeypatch):
    """How often references were measured."""
    module = sys.modules["ersde_lit.metrics.reference"]
    done, measure = [], module._measure
    monkeypatch.setattr(module, "_measure", lambda *given: done.append(1) or measure(*given))
    return done


def test_is_of_the_training_images_of_a_data_set(tmp_path):
    found = reference_of(Noise(), Projection(), cache=tmp_path)
    mean, cov, count = statistics(Projection(), [some_images(120, 0)])
    torch.testing.assert_close(found.statistics.mean, mean)
    torch.testing.assert_close(found.statistics.cov, cov)
    assert (found.num_images, count) == (120, 120)
    assert found.description == "120 training images of Noise"
    assert found.fingerprint == Projection().fingerprint
    features = Projection().eval()(some_images(120, 0))
    assert {tuple(row) for row in found.features.tolist()} == {tuple(row) for row in features.tolist()}


class Constant(Projection):
    """Whose first feature is the same for every image: its variance rounds to a little less than 0."""

    def forward(self, images):
        return super().forward(images).index_fill(1, torch.tensor([0]), 0.1)


def test_a_feature_that_never_changes_is_no_fault(tmp_path, passes):
    for _ in range(2):
        reference = reference_of(Noise(), Constant(), cache=tmp_path)
    assert passes == [1]
    assert reference.statistics.cov[0, 0].abs() < 1e-15
    write_reference(reference, tmp_path / "mine.npz")
    assert read_reference(tmp_path / "mine.npz", Constant()).num_images == 120


def test_is_computed_once(tmp_path, passes):
    first = reference_of(Noise(), Projection(), cache=tmp_path)
    second = reference_of(Noise(), Projection(), cache=tmp_path)
    assert len(passes) == 1
    same(first, second)
    assert first.description == second.description
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


@pytest.mark.parametrize(
    "other",
    [
        lambda cache: reference_of(Noise(1), Projection(), cache=cache),
        lambda cache: reference_of(Noise(0, 119), Projection(), cache=cache),
        lambda cache: reference_of(Noise(), Projection(1), cache=cache),
        lambda cache: reference_of(Noise(), OtherPreprocessing(), cache=cache),
        lambda cache: reference_of(Noise(), Projection(), cache=cache, keep_features=5),
    ],
    ids=["images", "fewer images", "weights", "preprocessing", "features kept"],
)
def test_the_cache_never_serves_another(tmp_path, passes, other):
    first, second = reference_of(Noise(), Projection(), cache=tmp_path), other(tmp_path)
    assert len(passes) == len([*tmp_path.iterdir()]) == 2
    assert (first.num_images, len(first.features)) != (second.num_images, len(second.features)) or not torch.equal(
        first.statistics.mean, second.statistics.mean
    )


class OtherPreprocessing(Projection):
    preprocessing = "darkened"

    def forward(self, images):
        return super().forward(images // 2)


@pytest.mark.parametrize("damage", ["cut", "text", "flipped", "not finite"])
def test_a_damaged_cache_is_computed_anew(tmp_path, passes, damage):
    first = reference_of(Noise(), Projection(), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "not finite":
        write_reference(Reference(first.statistics._replace(mean=first.statistics.mean * np.nan), ""), path)
    else:
        changed = bytearray(content)
        changed[300] ^= 255
        path.write_bytes({"cut": content[:-70], "text": b"text", "flipped": bytes(changed)}[damage])
    same(reference_of(Noise(), Projection(), cache=tmp_path), first)
    same(reference_of(Noise(), Projection(), cache=tmp_path), first)
    assert len(passes) == 2
    assert [*tmp_path.iterdir()] == [path]


def test_does_without_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert reference_of(Noise(), Projection(), cache=tmp_path / "file").num_images == 120


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    assert reference_of(Noise(), Projection(), cache=tmp_path).num_images == 120
    assert [*tmp_path.iterdir()] == []


def test_comes_back_from_the_file_it_is_written_to(tmp_path):
    first = reference_of(Noise(), Projection(), cache=tmp_path)
    write_reference(first, tmp_path / "stats.npz")
    second = read_reference(tmp_path / "stats.npz", Projection())
    same(first, second)
    assert second.description == first.description
    with pytest.raises(ValueError, match=r"\(120 training images of Noise\) was taken in other features than Proj"):
        read_reference(tmp_path / "stats.npz", Projection(1))


def test_writes_what_edms_evaluation_reads(tmp_path):
    """Its loader: `ref = dict(np.load(f))`, then ref['mu'] and ref['sigma'], unbiased, in float64."""
    write_folder(tmp_path / "set", {f"{k:02d}.png": png(image) for k, image in enumerate(IMAGES)})
    write_reference(reference_of(image_files(tmp_path / "set"), Colours(), cache=tmp_path), tmp_path / "stats.npz")
    ref = dict(np.load(tmp_path / "stats.npz"))
    assert ref["mu"].dtype == ref["sigma"].dtype == np.float64
    np.testing.assert_allclose(ref["mu"], MU, rtol=1e-12)
    np.testing.assert_allclose(ref["sigma"], SIGMA, rtol=1e-9, atol=1e-9)


def test_reads_what_edm_publishes(tmp_path):
    np.savez(tmp_path / "edm.npz", mu=MU, sigma=SIGMA)
    found = read_reference(tmp_path / "edm.npz", Colours())
    assert found.num_images is None
    assert found.features is None
    assert found.description == f"{tmp_path / 'edm.npz'} (images of unknown number)"
    assert torch.equal(found.statistics.mean, torch.from_numpy(MU))
    scores = Scores(Colours(), found)
    scores.update(torch.from_numpy(IMAGES))
    assert scores.compute()["fid"] == pytest.approx(0, abs=1e-6 * np.trace(SIGMA))


def test_an_adm_batch_is_read_as_its_published_evaluator_does(tmp_path):
    """mu and sigma, which are of more images, come before those of arr_0; activations are of arr_0."""
    np.savez(tmp_path / "adm.npz", arr_0=NHWC, mu=MU + 1, sigma=2 * SIGMA, mu_s=MU[:3], sigma_s=SIGMA[:3, :3])
    found = read_reference(tmp_path / "adm.npz", Colours(), cache=tmp_path / "cache")
    assert torch.equal(found.statistics.mean, torch.from_numpy(MU + 1))
    assert torch.equal(found.statistics.cov, torch.from_numpy(2 * SIGMA))
    rows = {tuple(row) for row in IMAGES.reshape(60, -1).tolist()}
    assert {tuple(row) for row in found.features.int().tolist()} == rows
    assert read_reference(tmp_path / "adm.npz", Colours(), keep_features=0).features is None


def test_an_adm_batch_without_statistics_is_measured(tmp_path):
    np.savez(tmp_path / "adm.npz", arr_0=NHWC, arr_1=np.zeros(60, np.int64))
    found = read_reference(tmp_path / "adm.npz", Colours(), cache=tmp_path / "cache")
    np.testing.assert_allclose(found.statistics.mean, MU, rtol=1e-12)
    np.testing.assert_allclose(found.statistics.cov, SIGMA, rtol=1e-9, atol=1e-9)
    assert (found.num_images, len(found.features)) == (60, 60)


def test_folders_and_our_arrays_are_references_too(tmp_path):
    path = write_folder(tmp_path / "set", edm_files(IMAGES, None))
    of_folder = read_reference(path, Colours(), cache=tmp_path / "cache")
    assert of_folder.description == f"60 images of {path}"
    convert(open_source(path, 4, unlabelled=True), tmp_path / "array", draw_held_out(60, 0, 0))
    same(read_reference(tmp_path / "array", Colours(), cache=tmp_path / "cache"), of_folder)


def test_counts_images_as_they_are_measured(tmp_path):
    counts = []
    for _ in range(2):
        reference_of(Noise(), Projection(), cache=tmp_path, advance=counts.append)
    assert counts == [64, 56]  # not a second time


@pytest.mark.parametrize("name", ["ref.NPZ", "ref.PKL"])
def test_endings_are_read_in_capitals_too(tmp_path, name):
    kept = {"mu": MU, "sigma": SIGMA}
    with (tmp_path / name).open("wb") as file:
        np.savez(file, **kept) if name.endswith("NPZ") else pickle.dump({"fid": kept}, file)
    assert torch.equal(read_reference(tmp_path / name, Colours()).statistics.mean, torch.from_numpy(MU))


BAD = {
    "other features": ({"mu": MU[:7], "sigma": SIGMA[:7, :7]}, "has 7 features, and Colours are 48: take a reference"),
    "no sigma": ({"mu": MU}, "has no mu and sigma"),
    "neither": ({"x": MU}, "has neither statistics, mu and sigma, nor images, arr_0"),
    "sigma of another size": ({"mu": MU, "sigma": SIGMA[:7]}, "mu [48] and sigma [7, 48] are not [d] and [d, d]"),
    "mu that is a number": ({"mu": 3.0, "sigma": SIGMA}, "mu [] and sigma [48, 48] are not"),
    "NaN": ({"mu": MU * np.nan, "sigma": SIGMA}, "mu, sigma or features are not finite"),
    "infinite": ({"mu": MU, "sigma": SIGMA * np.inf}, "mu, sigma or features are not finite"),
    "not symmetric": ({"mu": MU, "sigma": SIGMA + np.arange(48)}, "sigma is no covariance: not symmetric"),
    "negative": ({"mu": MU, "sigma": -SIGMA}, "sigma is no covariance"),
    "pickled": ({"mu": np.array([None] * 48), "sigma": SIGMA}, "mu cannot be used: it is of Python objects"),
    "features of another size": (
        {"mu": MU, "sigma": SIGMA, "features": SIGMA[:, :7]},
        "features [48, 7] are not [n, 48]",
    ),
    "a number of images that is none": ({"mu": MU, "sigma": SIGMA, "num_images": np.nan}, "are whole numbers: cannot"),
    "numbers of images": ({"mu": MU, "sigma": SIGMA, "num_images": [3, 4]}, "are whole numbers: only"),
    "text": ({"mu": np.array(["a"] * 48), "sigma": SIGMA}, "mu is <U1, not numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gets_one_line(tmp_path, case):
    arrays, message = BAD[case]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_reference(tmp_path / "bad.npz", Colours(), cache=tmp_path)
    assert str(tmp_path / "bad.npz") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_cut_short_says(tmp_path):
    with pytest.raises(ValueError, match=r"absent.npz cannot be read: No such file"):
        read_reference(tmp_path / "absent.npz", Colours())
    np.savez(tmp_path / "cut.npz", mu=MU, sigma=SIGMA)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"cut.npz is damaged, cut short or no zip file"):
        read_reference(tmp_path / "cut.npz", Colours())


def test_sizes_and_copies_are_known_where_there_are_images(tmp_path):
    twice = {f"{k:03d}.png": png(image) for k, image in enumerate([*IMAGES, *IMAGES[:12]])}
    np.savez(tmp_path / "images.npz", arr_0=np.concatenate([NHWC, NHWC[:12]]))
    np.savez(tmp_path / "adm.npz", arr_0=NHWC, mu=MU, sigma=SIGMA)
    folder = write_folder(tmp_path / "set", twice)
    convert(open_source(write_folder(tmp_path / "once", edm_files(IMAGES, None)), 4, unlabelled=True),
            tmp_path / "array", draw_held_out(60, 0, 0))  # fmt: skip
    expected = {"set": 12, "images.npz": 12, "adm.npz": 0, "array": 0}
    for name, copies in expected.items():
        for _ in range(2):  # measured, then from the cache
            found = read_reference(tmp_path / name, Colours(), cache=tmp_path / "cache")
            assert (found.image_shape, found.copies) == ((3, 4, 4), copies), name
    assert read_reference(tmp_path / "adm.npz", Colours(), keep_features=0).image_shape == (3, 4, 4)
    of_data = reference_of(Noise(), Projection(), cache=tmp_path / "cache", keep_features=0)
    assert (of_data.image_shape, of_data.copies) == ((2, 4, 4), 0)

    found = reference_of(image_files(folder), Colours(), cache=tmp_path / "cache")
    write_reference(found, tmp_path / "stats.npz")
    again = read_reference(tmp_path / "stats.npz", Colours())
    assert (again.image_shape, again.copies) == ((3, 4, 4), 12)
    assert again.copies_in_words.startswith("12 of 72 images of the reference are copies")


def test_a_file_of_before_is_read_and_has_neither(tmp_path):
    ours = {"num_images": 60, "description": "60 images", "fingerprint": Colours().fingerprint}
    np.savez(tmp_path / "old.npz", mu=MU, sigma=SIGMA, **ours)
    found = read_reference(tmp_path / "old.npz", Colours())
    assert (found.num_images, found.image_shape, found.copies) == (60, None, 0)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", mu=np.zeros(2**14), sigma=np.zeros((2**14, 2**14), np.uint8))
    with zipfile.ZipFile(tmp_path / "bomb.npz") as honest:  # 256 MiB, of which the header says 2 GiB
        mu, sigma = (bytearray(honest.read(f"{name}.npy")) for name in ("mu", "sigma"))
    sigma[: sigma.index(b"\n")] = sigma[: sigma.index(b"\n")].replace(b"|u1", b"<f8")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("mu.npy", mu)
        file.writestr("sigma.npy", sigma)
    with pytest.raises(ValueError, match=r"bomb.npz: sigma cannot be used: it is cut short"):
        read_reference(tmp_path / "bomb.npz", Colours())


def test_a_path_that_leads_out_and_an_odd_shape_are_refused(tmp_path):
    np.savez(tmp_path / "odd.npz", mu=MU, sigma=SIGMA, image_shape=[4.0, 4.0])
    with pytest.raises(ValueError, match="image_shape"):
        read_reference(tmp_path / "odd.npz", Colours())
    np.savez(tmp_path / "out.npz", **{"mu": MU, "sigma": SIGMA, "../x": MU})
    with pytest.raises(ValueError, match="leads out"):
        read_reference(tmp_path / "out.npz", Colours())


def test_pixels_of_a_converted_folder_are_not_hashed_but_told_apart(tmp_path, passes, monkeypatch):
    hashed, hash_them = [], sys.modules["ersde_lit.metrics.cache"].digest
    monkeypatch.setattr(
        "ersde_lit.metrics.cache.digest",
        lambda text, tensors: hash_them(text, [hashed.append(len(t)) or t for t in tensors]),
    )
    for name, images in {"a": IMAGES, "b": 255 - IMAGES}.items():
        source = open_source(write_folder(tmp_path / f"set_{name}", edm_files(images, None)), 4, unlabelled=True)
        convert(source, tmp_path / name, draw_held_out(60, 10, 0))
    found = [reference_of(ImageArray(str(tmp_path / name)), Colours(), cache=tmp_path / "c") for name in "ab"]
    assert hashed == []
    assert not torch.equal(found[0].statistics.mean, found[1].statistics.mean)
    same(read_reference(tmp_path / "a", Colours(), cache=tmp_path / "c"), found[0])  # the same images, cached
    whole = ImageArray(str(tmp_path / "a"), val_root=str(tmp_path / "b"))
    assert reference_of(whole, Colours(), cache=tmp_path / "c").num_images == 60  # not the 50 of before
    assert len(passes) == 3

    class Darker(ImageArray):
        def load(self):
            return {k: Split(s.images // 2, s.labels) for k, s in super().load().items()}

    assert reference_of(Darker(str(tmp_path / "a")), Colours(), cache=tmp_path / "c").statistics.mean.mean() < 70
    assert hashed == [50]
