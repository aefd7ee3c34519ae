"""Configuration of a training for a data set: network, batch and epochs sized to the images and to the time at hand."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import yaml

from ersde_lit.data import ImageDataModule
from ersde_lit.networks import UNet
from ersde_lit.ranks import Ranks
from ersde_lit.training.module import DiffusionModule

SIDES = 8, 16, 32, 64, 128, 256
GOAL = 300_000  # images that a training should see, before a larger network pays
MEASURED = 10_000  # images, for sigma_data
NFES = (5, 10, 20)
VALIDATIONS = 10  # at most
SHARE = 0.2  # of the time, for them
FEWEST = 50  # images for FID
PICTURES = 10  # a class, of the first ten: the callback's
STEPS = 1000  # of a training, before larger batches pay
OVERHEAD = 1.15  # of a training over its steps: data, averages, logs, checkpoints


def sizes(image_shape: tuple[int, int, int], train_images: int) -> tuple[list[dict[str, Any]], int]:
    """Networks for images of this size, from fast to slow (coarser patches, then finer ones and more channels).

    And the images of a step.
    """
    side = next((bound for bound in SIDES if max(image_shape[1:]) <= bound), SIDES[-1])
    dropout = 0.1 if train_images < 5000 else 0.0
    batch = 128 if side <= 32 else 64
    while batch > max(train_images // 4, 1):
        batch //= 2
    if side <= 16:
        made = [{"width": width, "multipliers": [1, 2], "attention": [1]} for width in (32, 64, 128)]
    else:
        patch = side // 16  # 16x16 patches at the finest level
        deep: dict[str, Any] = {"multipliers": [1, 2, 4], "blocks": 1, "attention": [1, 2]}
        finer: dict[str, Any] = {"multipliers": [1, 2, 2, 2], "blocks": 2, "attention": [2, 3]}
        made = [
            {"width": 24, **deep, "head_width": 24, "patch_size": patch},
            {"width": 48, **deep, "head_width": 48, "patch_size": patch},
            {"width": 64, **finer, "patch_size": max(patch // 2, 1)},
            {"width": 128, **finer, "head_width": 64, "patch_size": max(patch // 4, 1)},
        ]
    return [{**network, "dropout": dropout} for network in made], batch


def measure_speed(module: DiffusionModule, batch_size: int, seconds: float = 2.0) -> float:
    """Images a second of training steps on this machine, on the device that `fit` takes.

    Args:
        batch_size: images of a step.
        seconds: for how long steps are timed, after one that is not.

    Raises:
        OutOfMemoryError: the device is too small for such a step.
    """
    device = Ranks.start().device
    module = module.to(device).train()
    optimizer = module.recipe.optimizer(module.denoiser.parameters())
    x0 = torch.rand(batch_size, *module.image_shape, device=device) * 2 - 1
    labels = torch.zeros(batch_size, dtype=torch.int64, device=device) if module.num_classes else None

    def step() -> None:
        loss = module.denoiser.loss(x0, torch.ones(batch_size, device=device), torch.randn_like(x0), labels).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device

    step()
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or steps < 2:
        step()
        steps += 1
    return steps * batch_size / (time.perf_counter() - start) / OVERHEAD


def sigma_data(data: ImageDataModule, seed: int = 0) -> float:
    """Standard deviation of the training images' pixels in [-1, 1], of at most 10,000 images drawn by the seed."""
    images = data.split("train").images
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:MEASURED].sort().values
    count, total, squares = 0, 0.0, 0.0
    for part in chosen.split(500):
        pixels = images[part].double() / 127.5 - 1
        count, total, squares = count + pixels.numel(), total + pixels.sum().item(), squares + (pixels**2).sum().item()
    return math.sqrt(max(squares / count - (total / count) ** 2, 0.0))


def suggest(
    data: ImageDataModule,
    of_data: dict[str, Any],
    minutes: float,
    speed: Callable[[DiffusionModule, int], float] = measure_speed,
) -> tuple[dict[str, Any], float]:
    """A configuration for `fit` as plain data, and the images a second that it was made for.

    The largest network that fits into the device and can see 300,000 images in the time, or the smallest one; smaller
    batches where there would be few steps; ten validations at most, the last one at the end; FID of as many samples as
    there are held-out images, where validations take a fifth of the time.

    Args:
        data: the data set, with held-out images.
        of_data: its class_path and init_args.
        minutes: how long the training may take. It may end within its first epoch.
        speed: measures the training of a module with steps of a number of images.
    """
    train, held_out = len(data.split("train").labels), len(data.split("test").labels)
    sigma, seconds = round(sigma_data(data), 2) or 0.01, 60 * minutes
    chosen: tuple[dict[str, Any], DiffusionModule, float] | None = None
    networks, largest = sizes(data.image_shape, train)
    for network in networks:
        module = DiffusionModule(UNet(data.image_shape, data.num_classes, **network), sigma_data=sigma)
        try:
            measured = speed(module, largest)
        except torch.OutOfMemoryError:
            if chosen is None:
                raise
            break
        if chosen is None or measured * seconds >= GOAL:
            chosen = network, module, measured
        if measured * seconds < GOAL:
            break
    assert chosen is not None
    network, module, rate = chosen
    batch = largest
    while batch > 16 and rate * seconds // batch < STEPS:
        batch //= 2
    if batch < largest:
        rate = speed(module, batch)
    calls = 3 * rate * seconds * SHARE  # of the network, each of which takes a third of a training step
    validations = min(max(int(calls / 2 / held_out), 1), VALIDATIONS)  # losses of held-out images take half at most
    fid = _fid(data.num_classes, held_out, calls / validations - held_out)
    length, images = _length(int(rate * seconds * (1 - SHARE * bool(fid))), train, batch, validations)
    trainer: dict[str, Any] = {
        "devices": 1,
        **length,
        "gradient_clip_val": 1.0,
        "log_every_n_steps": max(min(50, train // batch, images // batch), 1),
    }
    model = {
        "network": {
            "class_path": "ersde_lit.networks.UNet",
            "init_args": {
                "image_shape": [*data.image_shape], "num_classes": data.num_classes, **network,
            },
        },
        "sigma_data": sigma,
        "density": {
            "class_path": "ersde_lit.denoisers.LogNormal",
            "init_args": {"mean": round(math.log(sigma) - 0.5, 2), "std": 1.2},  # EDM's -1.2 for its sigma_data of 0.5
        },
        "label_dropout": 0.1 if data.num_classes else 0.0,
        "optimizer": {"lr": 1e-3, "warmup": min(10_000, images // 10), "decay": 0.3},
        "ema": {"half_life": max(images // 30, batch)},
    }  # fmt: skip
    of_data = {**of_data, "init_args": {**of_data["init_args"], "batch_size": batch}}
    return {"model": model, "data": of_data, "trainer": trainer | ({"callbacks": [fid]} if fid else {})}, rate


def _length(images: int, train: int, batch: int, validations: int) -> tuple[dict[str, int], int]:
    """The trainer's options for a training on about so many images, validated at its end, and its images."""
    if epochs := images // train:
        every = -(-epochs // validations)
        epochs -= epochs % every
        return {"max_epochs": epochs, "check_val_every_n_epoch": every}, epochs * train
    steps = max(images // batch, 1)
    every = -(-steps // validations)
    steps -= steps % every
    return {"max_steps": steps, "val_check_interval": every}, steps * batch


def _fid(num_classes: int, held_out: int, calls: float) -> dict[str, Any] | None:
    """The FID callback that takes a number of network calls; None without classes or held-out images."""
    if num_classes < 2 or held_out < 2:
        return None
    pictures = PICTURES * min(num_classes, 10)
    nfes = NFES if calls >= (FEWEST + pictures) * sum(NFES) else (10,)
    samples = min(held_out, max(int(calls / sum(nfes)) - pictures, FEWEST))
    return {
        "class_path": "ersde_lit.callbacks.FIDCallback",
        "init_args": {
            "samplers": {"default": {"class_path": "ersde_lit.solvers.Default"}},
            "nfes": [*nfes],
            "num_samples": samples,
            "nearest_images": samples,
        },
    }


def to_yaml(configuration: dict[str, Any], comments: list[str]) -> str:
    """The configuration in YAML, below its comments."""
    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.safe_dump(configuration, sort_keys=False, default_flow_style=None, width=110)
