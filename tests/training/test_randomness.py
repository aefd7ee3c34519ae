import torch

from ersde_lit.solvers import SeededNoise
from ersde_lit.training.randomness import image_seeds, uniform

CPU = torch.device("cpu")


def test_every_image_of_a_run_has_a_seed_of_its_own() -> None:
    seeds = [seed for start in (0, 8, 16) for seed in image_seeds(0, range(start, start + 8))]
    assert len(set(seeds)) == 24
    assert not set(seeds) & set(image_seeds(1, range(1000)))
    assert min(seeds) >= 0
    SeededNoise(image_seeds(0, range(10**13, 10**13 + 2)), (1,))  # in range for longer than anyone will train


def test_it_does_not_matter_which_rank_has_an_image() -> None:
    both = image_seeds(3, range(100, 110))
    assert list(image_seeds(3, range(100, 110, 2))) == list(both)[::2]
    assert list(image_seeds(3, range(101, 110, 2))) == list(both)[1::2]
    assert torch.equal(uniform(both[1::2], 3, CPU), uniform(both, 3, CPU)[1::2])


def test_numbers_are_uniform_and_below_one() -> None:
    u = uniform(range(20_000), 5, CPU)
    assert u.shape == (20_000, 5)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    shares = torch.histc(u, 20, 0, 1) / u.numel()
    torch.testing.assert_close(shares, torch.full_like(shares, 0.05), atol=0.003, rtol=0)
    correlation = torch.corrcoef(u.T) - torch.eye(5)
    assert correlation.abs().max() < 0.03


def test_they_are_not_those_of_the_noise() -> None:
    seeds = range(5000)
    noise = SeededNoise(seeds, (4,)).initial()
    both = torch.corrcoef(torch.cat([noise, uniform(seeds, 4, CPU)], 1).T)
    assert both[:4, 4:].abs().max() < 0.05
