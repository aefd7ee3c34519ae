"""Every step's raw weights of a training, and their averages by the definition."""

import lightning.pytorch as pl
import numpy as np
import torch

from ersde_lit.training.power_ema import gamma_of


class Trajectory(pl.Callback):
    """Keeps the weights of `denoiser` after each optimiser step, and the images seen by then."""

    def __init__(self) -> None:
        self.images, self.weights, self.step = [], [], 0

    def on_train_start(self, runner, module) -> None:
        self.step = runner.global_step

    def on_train_batch_end(self, runner, module, *args) -> None:
        if runner.global_step > self.step:
            self.step = runner.global_step
            self.images.append(module.images_seen)
            self.weights.append(flat(dict(module.denoiser.named_parameters())))

    def average(self, sigma_rel: float, images: int | None = None) -> np.ndarray:
        """Of the weights up to the step at which `images` had been seen."""
        seen = np.array([0, *self.images])
        if images is not None:
            seen = seen[seen <= images]
        mass = (seen / seen[-1]) ** (gamma_of(sigma_rel) + 1)
        return np.diff(mass) @ np.array(self.weights[: len(seen) - 1])


def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()]).double().numpy()


def averaged(checkpoint: dict) -> np.ndarray:
    """The averaged weights of a checkpoint of tiny's network, in the order of `flat`."""
    prefix = "ema_denoiser."
    return flat({name: value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)})


def distance(given: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(given - exact) / np.linalg.norm(exact))
