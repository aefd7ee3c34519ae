import pytest
import torch
from torch import nn

from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.labels import labels_of_seeds
from ersde_lit.solvers import NFECounter, default


class Toy(nn.Module):
    """E[x0 | y] of Gaussian classes, bent by a small network: its products round differently at each batch size."""

    image_shape = (1, 8, 8)
    lam_min, lam_max, levels = 0.002, 80.0, None

    def __init__(self, num_classes=10):
        super().__init__()
        self.num_classes = num_classes
        torch.manual_seed(0)
        self.means = nn.Parameter(torch.rand(max(num_classes, 1), 1, 8, 8) - 0.5)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.Tanh(), nn.Dropout(0.5), nn.Linear(128, 64))

    def forward(self, y, lam, labels=None):
        mean = self.means[labels.clamp(min=0)] if labels is not None else self.means[:1]
        x0 = mean + (y - mean) * 0.04 / (0.04 + lam**2)
        return x0 + 0.1 * self.net(y / (1 + lam)).view_as(y)


def images_of(denoiser, seeds, batch_size, nfe=10, labels=None):
    blocks = list(generate(denoiser, default(nfe), seeds, nfe, labels, batch_size=batch_size))
    return torch.cat([block.images for block in blocks])


@pytest.mark.parametrize("num_classes", [0, 10])
def test_batch_size_changes_rounding_only(num_classes):
    denoiser = Toy(num_classes).eval()
    assert (images_of(denoiser, range(100), 7) - images_of(denoiser, range(100), 100)).abs().max() < 1e-4


@pytest.mark.parametrize("num_classes", [0, 10])
def test_image_depends_on_its_seed_alone(num_classes):
    denoiser = Toy(num_classes).eval()
    ten = images_of(denoiser, range(10), 10)
    assert (images_of(denoiser, range(3, 6), 3) - ten[3:6]).abs().max() < 1e-4
    assert (images_of(denoiser, [9, 2, 5], 2) - ten[[9, 2, 5]]).abs().max() < 1e-4
    assert (ten[1:] - ten[:-1]).abs().amax((1, 2, 3)).min() > 0.1


def test_same_blocks_same_bytes():
    denoiser = Toy().eval()
    whole = list(generate(denoiser, default(5), range(20), 5, batch_size=8))
    for block in reversed(whole):  # what resuming will do: one block again, alone and in any order
        (again,) = generate(denoiser, default(5), block.seeds, 5, batch_size=8)
        assert torch.equal(again.images, block.images)
        assert torch.equal(again.labels, block.labels)


def test_blocks_cover_the_seeds_in_order():
    blocks = list(generate(Toy().eval(), default(1), [5, 3, *range(10, 18)], 1, batch_size=4))
    assert [list(block.seeds) for block in blocks] == [[5, 3, 10, 11], [12, 13, 14, 15], [16, 17]]
    assert [len(block.images) for block in blocks] == [4, 4, 2]
    assert torch.equal(torch.cat([block.labels for block in blocks]), labels_of_seeds([5, 3, *range(10, 18)], 10))


def test_given_labels_go_with_their_seeds():
    denoiser = Toy().eval()
    images = images_of(denoiser, range(5), 2, labels=[7, -1, 3, 3, 0])
    assert (images[2:4] - images_of(denoiser, [2, 3], 2, labels=torch.tensor([3, 3]))).abs().max() < 1e-4
    assert (images[0] - images_of(denoiser, [0], 1, labels=[6])[0]).abs().max() > 0.1


def test_calls_the_network_nfe_times_a_block():
    counter = NFECounter(Toy().eval())
    list(generate(counter, default(6), range(10), 6, batch_size=4))
    assert counter.nfe == 3 * 6


def test_callback_sees_every_step():
    seen = []
    list(generate(Toy().eval(), default(6), range(3), 6, batch_size=2, callback=lambda i, lam, y, x0: seen.append(i)))
    assert seen == [*range(6), *range(6)]


def test_samples_in_evaluation_mode_and_leaves_modes_as_they_were():
    denoiser = Toy()
    expected = images_of(denoiser.eval(), range(4), 4)
    denoiser.train()
    denoiser.net[1].eval()  # a part frozen by its owner
    modes = [m.training for m in denoiser.modules()]
    assert torch.equal(images_of(denoiser, range(4), 4), expected)
    assert [m.training for m in denoiser.modules()] == modes


def test_images_are_the_callers():
    """No inference mode outside, none in the result: the images can be written to and used in autograd."""
    for block in generate(Toy().eval(), default(1), range(4), 1, batch_size=2):
        assert not torch.is_inference_mode_enabled()
        assert not block.images.requires_grad
        block.images.mul_(2)
        (block.images * torch.ones(1, requires_grad=True)).sum().backward()


@pytest.mark.parametrize(
    ("num_classes", "labels", "batch_size", "match"),
    [
        (10, [0, 1], 4, "one an image"),
        (10, [0, 1, 10], 4, "run from 0 to 10"),
        (0, [0, 0, 0], 4, "unconditional"),
        (10, None, 0, "batch_size is 0"),
        (10, None, -1, "batch_size is -1"),
    ],
)
def test_bad_arguments_are_refused_at_once(num_classes, labels, batch_size, match):
    with pytest.raises(ValueError, match=match):
        generate(Toy(num_classes), default(1), range(3), 1, labels, batch_size=batch_size)
