"""A suggested training fits the images, the machine's speed and the time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ersde_lit.data import ImageDataModule, Split
from ersde_lit.networks import UNet
from ersde_lit.training import DiffusionModule
from ersde_lit.training.suggestion import GOAL, measure_speed, sigma_data, sizes, suggest

OF_DATA = {"class_path": "a.B", "init_args": {"root": "x"}}


class Images(ImageDataModule):
    """Random images, a tenth of which are held out."""

    def __init__(self, count: int, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 2) -> None:
        super().__init__()
        self.image_shape, self.num_classes, self.count = shape, classes, count

    def load(self) -> dict[str, Split]:
        generator = torch.Generator().manual_seed(self.count)
        images = torch.randint(0, 128, (self.count, *self.image_shape), generator=generator, dtype=torch.uint8)
        labels = torch.arange(self.count) % self.num_classes if self.num_classes else torch.full((self.count,), -1)
        train = self.count - self.count // 10
        parts = {"train": slice(train), "val": slice(train, None), "test": slice(train, None)}
        return {name: Split(images[part], labels[part]) for name, part in parts.items()}


def suggested(data: ImageDataModule, minutes: float, rate: float) -> dict:
    return suggest(data, OF_DATA, minutes, lambda module, batch: rate)[0]


@pytest.mark.parametrize("side", [8, 28, 32, 64, 100, 256])
def test_networks_take_images_of_any_side_and_grow(side: int) -> None:
    numbers = []
    networks, _ = sizes((3, side, side), 10_000)
    for arguments in networks:
        with torch.device("meta"):
            network = UNet((3, side, side), 10, **arguments)
        numbers.append(sum(weight.numel() for weight in network.parameters()))
    assert numbers == sorted(numbers)
    small = UNet((3, side, side), 10, **networks[0])
    assert small(torch.zeros(1, 3, side, side), torch.zeros(1), torch.tensor([1])).shape == (1, 3, side, side)


@given(count=st.integers(10, 3000), minutes=st.floats(0.1, 100), rate=st.floats(1, 1000))
@settings(max_examples=30, deadline=None)
def test_the_training_takes_about_the_time_and_a_batch_fits_the_images(count, minutes, rate) -> None:
    made = suggested(Images(count), minutes, rate)
    trainer, batch, train = made["trainer"], made["data"]["init_args"]["batch_size"], count - count // 10
    steps = trainer.get("max_steps") or trainer["max_epochs"] * (train // batch)
    assert 1 <= batch <= max(train // 4, 1)
    images = steps * batch if "max_steps" in trainer else trainer["max_epochs"] * train
    assert images / rate <= max(minutes * 60, batch / rate)
    if minutes * 60 * rate > 100 * train:  # time for many epochs
        assert images / rate >= 0.7 * minutes * 60
    assert trainer["log_every_n_steps"] <= min(steps, max(train // batch, 1))


@given(epochs=st.floats(0.01, 1.5) | st.floats(1, 300))
@settings(max_examples=30, deadline=None)
def test_there_are_ten_validations_at_most_and_one_at_the_end(epochs: float) -> None:
    trainer = suggested(Images(2000), epochs / 60, 1800)["trainer"]
    if "max_epochs" in trainer:
        validations, rest = divmod(trainer["max_epochs"], trainer["check_val_every_n_epoch"])
    else:
        validations, rest = divmod(trainer["max_steps"], trainer["val_check_interval"])
        assert trainer["max_steps"] <= 1800 // 16
    assert 1 <= validations <= 10
    assert rest == 0


def test_many_held_out_images_are_validated_rarely() -> None:
    def validations(count: int) -> float:
        trainer = suggested(Images(count), 1, 100)["trainer"]  # 6,000 images
        return trainer["max_steps"] / trainer["val_check_interval"]

    assert validations(20_000) == 1
    assert validations(6000) == 3


def test_a_network_that_does_not_fit_into_the_device_is_not_taken() -> None:
    def speed(module: DiffusionModule, batch: int) -> float:
        if module.network.width > 64:
            raise torch.OutOfMemoryError
        return 1e6

    made = suggest(Images(100), OF_DATA, 60, speed)[0]
    assert made["model"]["network"]["init_args"]["width"] == 64


def test_few_steps_are_made_of_small_batches_whose_speed_is_measured() -> None:
    batches = []

    def speed(module: DiffusionModule, batch: int) -> float:
        batches.append(batch)
        return 100.0

    made = suggest(Images(2000), OF_DATA, 5, speed)[0]
    assert batches == [128, 16]
    assert made["data"]["init_args"]["batch_size"] == 16


def test_a_larger_network_is_taken_where_it_sees_enough_images() -> None:
    def speed(module: DiffusionModule, batch: int) -> float:
        return 200 * 32 / module.network.width  # images/s

    widths = [
        suggest(Images(100), OF_DATA, minutes, speed)[0]["model"]["network"]["init_args"]["width"]
        for minutes in (1, GOAL / 200 / 60, GOAL / 100 / 60, GOAL / 50 / 60)
    ]
    assert widths == [32, 32, 64, 128]


def test_fid_is_of_as_many_samples_as_are_held_out_where_time_allows() -> None:
    def fid(count: int, rate: float) -> dict:
        return suggested(Images(count), 60, rate)["trainer"]["callbacks"][0]["init_args"]

    assert fid(2000, 1000)["num_samples"] == 200
    assert fid(2000, 1000)["nfes"] == [5, 10, 20]
    assert fid(2000, 5)["num_samples"] == 68  # 72 s x 15 calls/s - 200 for losses, in tens, less 20 in pictures
    assert fid(2000, 5)["nfes"] == [10]
    assert fid(2000, 0.1)["num_samples"] == 50
    assert "callbacks" not in suggested(Images(200, classes=0), 60, 1000)["trainer"]


def test_sigma_data_is_the_standard_deviation_of_the_training_images() -> None:
    data = Images(300)
    pixels = data.split("train").images.double() / 127.5 - 1
    assert sigma_data(data) == pytest.approx(pixels.std(correction=0).item(), rel=1e-12)
    model = suggested(data, 1, 10)["model"]
    assert model["sigma_data"] == round(sigma_data(data), 2)
    assert model["density"]["init_args"]["mean"] == pytest.approx(math.log(sigma_data(data)) - 0.5, abs=0.03)


def test_sigma_data_of_many_images_is_that_of_some() -> None:
    data = Images(12_000, (1, 2, 2))
    pixels = data.split("train").images.double() / 127.5 - 1
    assert sigma_data(data) == pytest.approx(pixels.std().item(), rel=0.01)


def test_speed_is_that_of_real_steps() -> None:
    module = DiffusionModule(UNet((1, 8, 8), 2, width=8, multipliers=(1,), blocks=1, attention=(), head_width=8))
    before = module.denoiser.network.leave[-1].weight.clone()
    assert measure_speed(module, 4, seconds=0.05) > 0
    assert not torch.equal(module.denoiser.network.leave[-1].weight, before)
