from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_sets import encoded, pixels, png, write_folder
from PIL import Image
from tiny import trainer

from ersde_lit.cli import main
from ersde_lit.data import ImagePairs
from ersde_lit.data.convert import convert
from ersde_lit.data.image_files import encode_png
from ersde_lit.data.opening import open_source
from ersde_lit.denoisers import EDA, PairNoise
from ersde_lit.networks import UNet
from ersde_lit.training import DiffusionModule

DIFFERENCE = 40  # grey levels, of each degraded image to its clean one
NAMES = [f"{k:02d}.png" for k in range(24)]


def folders(place: Path, clean: list[np.ndarray], suffix: str = "") -> dict[str, str]:
    """Two folders of images [C, H, W]; the degraded ones are brighter throughout."""
    for name, shift in (("clean", 0), ("degraded", DIFFERENCE)):
        content = {key: png(image + np.uint8(shift)) for key, image in zip(NAMES, clean, strict=False)}
        write_folder(place / f"{name}{suffix}", content)
    return {name: str(place / f"{name}{suffix}") for name in ("degraded", "clean")}


def random_images(count: int = 24, channels: int = 1, sides: tuple[int, ...] = (8,)) -> list[np.ndarray]:
    """Images of these sides in turn, too dark to be clipped where they are brighter."""
    return [pixels(1, sides[k % len(sides)], channels, seed=k)[0] // 2 for k in range(count)]


@pytest.fixture
def pairs(tmp_path) -> dict[str, str]:
    return folders(tmp_path, random_images())


@pytest.fixture
def of_sizes(tmp_path) -> dict[str, str]:
    return folders(tmp_path, random_images(channels=3, sides=(9, 12, 17)), "_of_sizes")


def levels(images: torch.Tensor) -> np.ndarray:
    return ((images + 1) * 127.5).round().byte().numpy()


def test_batches_are_the_pairs(pairs) -> None:
    data = ImagePairs(**pairs, batch_size=5, val_size=4)
    assert (data.image_shape, data.num_classes) == ((1, 8, 8), 0)
    seen = [[*data.train_dataloader()], [*data.val_dataloader()]]
    assert [len(batches) for batches in seen] == [4, 1]  # 20 images, 4 images
    assert [*map(len, seen[1][0])] == [4, 4, 4]
    known = {image.tobytes() for image in random_images()}
    for clean, labels, degraded in seen[0] + seen[1]:
        assert clean.dtype == degraded.dtype == torch.float32
        assert labels.tolist() == [-1] * len(clean)
        known -= {image.tobytes() for image in levels(clean)}
        torch.testing.assert_close(degraded - clean, torch.full_like(clean, DIFFERENCE / 127.5))
    assert not known  # all were seen, so none of the held-out ones in training
    train, val = ({image.tobytes() for x, *_ in batches for image in levels(x)} for batches in seen)
    assert not train & val


def test_held_out_pairs_follow_from_the_seed(pairs) -> None:
    vals = [ImagePairs(**pairs, val_size=4, seed=seed).split("val").images for seed in (0, 0, 1)]
    assert torch.equal(vals[0], vals[1])
    assert not torch.equal(vals[0], vals[2])


def epoch(data: ImagePairs, number: int = 0) -> list[tuple[torch.Tensor, ...]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return [*loader]


def places(images: list[np.ndarray], crops: np.ndarray) -> list[set[tuple[int, int, int, bool]]]:
    """Where in which image each crop [C, h, w] lies, and whether it is mirrored: all answers."""
    answers = []
    for crop in crops:
        side, found = crop.shape[-1], set()
        for k, image in enumerate(images):
            windows = np.lib.stride_tricks.sliding_window_view(image, crop.shape)[0]
            for mirrored in (False, True):
                same = (windows == (crop[..., ::-1] if mirrored else crop)).all((2, 3, 4))
                found |= {(k, int(top), int(left), mirrored) for top, left in np.argwhere(same)}
        assert found, f"the crop of {side} is nowhere"
        answers.append(found)
    return answers


def test_crops_and_mirrorings_are_of_one_place_in_both_images(of_sizes) -> None:
    data = ImagePairs(**of_sizes, crop=5, horizontal_flip=True, batch_size=20, val_size=4)
    images, found = random_images(channels=3, sides=(9, 12, 17)), []
    for number in range(20):
        for clean, _, degraded in epoch(data, number):
            assert clean.shape == degraded.shape == (20, 3, 5, 5)
            torch.testing.assert_close(degraded - clean, torch.full_like(clean, DIFFERENCE / 127.5))
            found += [next(iter(answers)) for answers in places(images, levels(clean))]
    assert len({image for image, *_ in found}) == 20
    for side in (9, 12, 17):  # the middle, the edges and all between
        for axis in (1, 2):
            assert {place[axis] for place in found if images[place[0]].shape[1] == side} == {*range(side - 4)}
    assert 150 < sum(mirrored for *_, mirrored in found) < 250
    mirrored, others = ({place[:3] for place in found if place[3] == flag} for flag in (True, False))
    assert len(mirrored & others) > 30  # a place is mirrored or not


def test_nothing_is_mirrored_unless_asked(of_sizes) -> None:
    data = ImagePairs(**of_sizes, crop=5, batch_size=20, val_size=4)
    images = random_images(channels=3, sides=(9, 12, 17))
    assert not any(place[3] for answers in places(images, levels(epoch(data)[0][0])) for place in answers)


def test_whole_images_are_mirrored_too(pairs) -> None:
    data = ImagePairs(**pairs, horizontal_flip=True, batch_size=20, val_size=4)
    (clean, _, degraded), = epoch(data)  # fmt: skip
    torch.testing.assert_close(degraded - clean, torch.full_like(clean, DIFFERENCE / 127.5))
    mirrored = [place[3] for answers in places(random_images(), levels(clean)) for place in answers]
    assert 4 < sum(mirrored) < 16


def test_validation_takes_the_middle_as_it_is(of_sizes) -> None:
    data = ImagePairs(**of_sizes, crop=5, horizontal_flip=True, val_size=12)
    images = random_images(channels=3, sides=(9, 12, 17))
    (clean, _, degraded), = data.val_dataloader()  # fmt: skip
    middle = {9: 2, 12: 4, 17: 6}
    for answers in places(images, levels(clean)):
        (k, top, left, mirrored), = answers  # fmt: skip
        assert top == left == middle[images[k].shape[1]] or images[k].shape[1] == 12  # 3.5 is rounded
        assert abs(top - (images[k].shape[1] - 5) / 2) <= 0.5
        assert not mirrored
    torch.testing.assert_close(degraded - clean, torch.full_like(clean, DIFFERENCE / 127.5))
    assert np.array_equal(data.split("val").images, levels(clean))
    assert np.array_equal(torch.cat([*data.batches(5)]), data.split("train").images)


def test_an_epoch_is_a_function_of_seed_and_epoch_and_ranks_share_it(of_sizes, monkeypatch) -> None:
    def shares(ranks: int, number: int = 0, done: int = 0) -> list[list[torch.Tensor]]:
        dealt = []
        for rank in range(ranks):
            data = ImagePairs(**of_sizes, crop=5, horizontal_flip=True, batch_size=8, val_size=8)
            current = SimpleNamespace(ready=done)
            progress = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=current)))
            data.trainer = SimpleNamespace(
                world_size=ranks, global_rank=rank, accumulate_grad_batches=1, fit_loop=progress
            )
            dealt.append([torch.cat([clean, degraded], 1) for clean, _, degraded in epoch(data, number)])
        return dealt

    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    (whole,), two = shares(1), shares(2)
    torch.manual_seed(1)
    assert [*map(torch.equal, whole, shares(1)[0])] == [True, True]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.stack([two[0][step], two[1][step]], 1).flatten(0, 1), batch)
    assert torch.equal(shares(1, done=1)[0][0], whole[1])  # resumed
    assert not torch.equal(shares(1, number=1)[0][0], whole[0])
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(shares(1)[0][0], whole[0])


def test_deep_images_keep_their_bits(tmp_path) -> None:
    value = torch.tensor([-1.0, 12345 / 32767.5 - 1, 0.5, 1.0]).view(1, 2, 2)
    for name, image in (("clean", value), ("degraded", -value)):
        (tmp_path / name).mkdir()
        for key in NAMES[:2]:
            (tmp_path / name / key).write_bytes(encode_png(image, 16))
    data = ImagePairs(str(tmp_path / "degraded"), str(tmp_path / "clean"))
    (clean, _, degraded), = data.val_dataloader()  # fmt: skip
    torch.testing.assert_close(clean[0], value, atol=1 / 65535, rtol=0)
    torch.testing.assert_close(degraded[0], -value, atol=1 / 65535, rtol=0)
    assert data.split("val").images.flatten().tolist() == [0, 48, 191, 255]


def converted(place: Path, sources: dict[str, str], held_out: list[int], size: int = 8) -> dict[str, str]:
    for name, source in sources.items():
        convert(open_source(source, size, 1, unlabelled=True), place / name, np.array(held_out, int))
    return {name: str(place / name) for name in sources}


def test_converted_folders_hold_the_same_pairs(pairs, tmp_path) -> None:
    arrays = converted(tmp_path / "arrays", pairs, [3, 7])
    data = ImagePairs(**arrays, crop=6, batch_size=20, horizontal_flip=True)
    assert data.image_shape == (1, 6, 6)
    for clean, _, degraded in [*epoch(data), *data.val_dataloader()]:
        torch.testing.assert_close(degraded - clean, torch.full_like(clean, DIFFERENCE / 127.5))
    images = random_images()
    assert np.array_equal(data.split("val").images, [images[k][:, 1:7, 1:7] for k in (3, 7)])
    assert {k for answers in places(images, levels(epoch(data)[0][0])) for k, *_ in answers}.isdisjoint({3, 7})


def test_a_network_is_trained_on_pairs(pairs, tmp_path) -> None:
    network = UNet((1, 8, 8), width=8, multipliers=(1,), blocks=1, attention=(), head_width=8)
    module = DiffusionModule(network, EDA(), "eda", "eda", noise=PairNoise())
    data = ImagePairs(**pairs, crop=8, batch_size=10, val_size=4, horizontal_flip=True)
    before = [weights.clone() for weights in module.parameters()]
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(module, datamodule=data)
    assert fit.global_step == 2
    assert torch.isfinite(fit.callback_metrics["val/loss"])
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_a_grey_network_is_not_trained_on_colours(of_sizes, tmp_path) -> None:
    module = DiffusionModule(UNet((1, 8, 8), width=8, head_width=8), EDA(), "eda", "eda", noise=PairNoise())
    with pytest.raises(ValueError, match=r"images are \(3, 8, 8\), the network's \(1, 8, 8\)"):
        trainer(tmp_path).fit(module, datamodule=ImagePairs(**of_sizes, crop=8, batch_size=4))


def changed(name: str, content: bytes | None):
    """The pairs, with another clean image of this name, or none."""

    def change(place: Path) -> None:
        path = place / "clean" / name
        path.unlink() if content is None else path.write_bytes(content)

    return change


def emptied(place: Path) -> None:
    for path in (place / "clean").iterdir():
        path.unlink()


LARGE, COLOUR = png(pixels(1, 9, 1)[0]), png(pixels(1)[0])
FLOATS = encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "tiff")
BAD = {
    "no partner": (changed("03.png", None), {}, r"without a partner .* 03\.png \(only in .*degraded\)"),
    "another size": (
        changed("03.png", LARGE),
        {},
        r"03\.png is 8x8 \(grey\) in .*degraded but 9x9 \(grey\) in .*clean",
    ),
    "another colour": (changed("03.png", COLOUR), {}, r"03\.png is 8x8 \(grey\) in .* but 8x8 \(colour\)"),
    "no image": (changed("03.png", b"<html>"), {}, r"clean/03\.png cannot be used"),
    "damaged": (changed("03.png", png(pixels(1, 8, 1)[0])[:-30]), {}, r"clean/03\.png cannot be used: .*truncated"),
    "NaN": (changed("03.png", FLOATS), {}, r"clean/03\.png cannot be used: .* of the kind F"),
    "empty": (emptied, {}, "clean holds no image"),
    "too small": (lambda place: None, {"crop": 9}, r"00\.png is 8x8 \(grey\), too small for a crop of 9"),
    "no crop": (lambda place: None, {"crop": 0}, "crop must be at least 1"),
    "none held out": (lambda place: None, {"val_size": 0}, "val_size 0 holds no pair out"),
    "all held out": (lambda place: None, {"val_size": 24}, "hold out 0 to 23"),
    "one folder": (lambda place: None, {"clean": "degraded"}, "the same folder"),
    "no folder": (lambda place: None, {"clean": "absent"}, "there is no folder .*absent"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pairs_are_refused_in_one_line(pairs, tmp_path, case: str) -> None:
    change, options, message = BAD[case]
    change(tmp_path)
    if "clean" in options:
        options = {"clean": str(tmp_path / options["clean"])}
    with pytest.raises(ValueError, match=message) as caught:
        ImagePairs(**{**pairs, **options}).setup("fit")
    assert "\n" not in str(caught.value)


def test_images_of_several_sizes_need_a_crop_and_one_colour(of_sizes, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"01\.png is 12x12 \(colour\), .*00\.png 9x9 \(colour\): .* unless `crop`"):
        ImagePairs(**of_sizes)
    mixed = folders(tmp_path, [*random_images(2), *random_images(1, 3)], "_mixed")
    with pytest.raises(ValueError, match=r"02\.png is 8x8 \(colour\), .*00\.png 8x8 \(grey\): all must be grey or all"):
        ImagePairs(**mixed, crop=4)


def test_converted_folders_that_are_no_pairs_are_refused(pairs, tmp_path) -> None:
    arrays, others = converted(tmp_path / "a", pairs, [3, 7]), converted(tmp_path / "b", pairs, [])
    for wrong in ({"clean": others["clean"]}, {"clean": arrays["degraded"]}):
        with pytest.raises(ValueError, match="are no pairs: make both by one `data DEGRADED --clean CLEAN`"):
            ImagePairs(**{**arrays, **wrong})
    with pytest.raises(ValueError, match="holds 0 images out: that is chosen by `data --val_size`"):
        ImagePairs(**others)
    with pytest.raises(ValueError, match="holds 2 images out: that is chosen"):
        ImagePairs(**arrays, val_size=4)


def test_folders_converted_in_other_orders_are_refused(pairs, tmp_path, capsys) -> None:
    for seed, source in ((0, "degraded"), (0, "clean"), (1, "clean")):
        out = str(tmp_path / f"{source}{seed}")
        assert main(["data", pairs[source], "--out", out, "--size=8", "--unlabelled", f"--seed={seed}"]) == 0
    degraded = str(tmp_path / "degraded0")
    ImagePairs(degraded, str(tmp_path / "clean0"))
    with pytest.raises(ValueError, match="are no pairs"):
        ImagePairs(degraded, str(tmp_path / "clean1"))
