import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ersde_lit.solvers import SeededNoise
from ersde_lit.solvers.noise import MAX_SEED

MASK = 2**64 - 1
SHAPE = (3, 8, 8)


def lea64(x: int) -> int:
    """The published mixer in Python's integers."""
    for _ in range(2):
        x = (x ^ x >> 32) * 0xDABA0B6EB09322E3 & MASK
    return x ^ x >> 32


def by_hand(seed: int, stream: int, elements: int) -> list[float]:
    """One image's noise in Python's integers and floats; stream 0 is `initial`, i + 1 is `step(i)`."""
    key, pairs = lea64(stream << 48 | seed), (elements + 1) // 2
    cosines, sines = [], []
    for e in range(1, pairs + 1):
        bits = lea64(key ^ lea64(e * 0x9E3779B97F4A7C15 & MASK))
        low, high = bits & 0xFFFFFFFF, bits >> 32 & 0x7FFFFFFF
        angle = math.pi * (low - (low >> 31 << 32)) / 2**31
        radius = math.sqrt(-2 * math.log((high + 0.5) / 2**31))
        cosines.append(radius * math.cos(angle))
        sines.append(radius * math.sin(angle))
    return (cosines + sines)[:elements]


@pytest.mark.parametrize("seed", [0, 1, 12345678901, MAX_SEED])
@pytest.mark.parametrize("elements", [1, 4, 7])
def test_is_what_it_is_said_to_be(seed: int, elements: int) -> None:
    """Also keeps seeds meaning the same images in every release."""
    noise = SeededNoise([5, seed], (elements,), dtype=torch.float64)
    for stream, z in enumerate([noise.initial(), noise.step(0), noise.step(1)]):
        np.testing.assert_allclose(z[1], by_hand(seed, stream, elements), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "seeds", [range(5), range(3, 20, 4), range(9, 2, -3), range(MAX_SEED - 2, MAX_SEED + 1), range(4, 4), range(5, 2)]
)
def test_a_range_of_seeds_is_a_list_of_them(seeds: range) -> None:
    noise, same = SeededNoise(seeds, SHAPE), SeededNoise(list(seeds), SHAPE)
    assert torch.equal(noise.initial(), same.initial())
    assert torch.equal(noise.step(3), same.step(3))


@pytest.mark.parametrize("seeds", [range(-1, 3), range(3, -2, -1), range(MAX_SEED, MAX_SEED + 2)])
def test_a_range_is_checked_at_both_ends(seeds: range) -> None:
    with pytest.raises(ValueError, match="a seed must lie between"):
        SeededNoise(seeds, SHAPE)


def test_is_normal() -> None:
    z = torch.cat([SeededNoise(range(100), (5000,)).step(i).flatten() for i in (0, 7)]).double().numpy()
    assert stats.kstest(z, "norm").pvalue > 0.01
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4 * math.sqrt(variance / z.size)
    # Tails, which a coarse uniform would cut: of a million about 0.6 lie beyond 5, and 63 beyond 4.
    assert 35 < (abs(z) > 4).sum() < 95
    assert abs(z).max() < 6.7


def test_single_images_are_normal() -> None:
    z = SeededNoise(range(300), SHAPE).initial().flatten(1).double().numpy()
    p = [stats.kstest(image, "norm").pvalue for image in z]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def correlations(z: Tensor) -> Tensor:
    """Between different rows, in units of their standard error."""
    c = torch.corrcoef(z.flatten(1).double()) * math.sqrt(z[0].numel())
    return c[~torch.eye(len(c), dtype=torch.bool)]


def assert_uncorrelated(rows: Tensor) -> None:
    for z in (rows, rows**2):  # the square would show a shared radius
        c = correlations(z)
        assert c.abs().max() < 5.5
        assert abs(c.std() - 1) < 0.1


def test_seeds_are_independent() -> None:
    assert_uncorrelated(SeededNoise([*range(60), *(2**k for k in range(6, 48))], (1000,)).step(0))


def test_steps_are_independent() -> None:
    noise = SeededNoise([3], (1000,))
    assert_uncorrelated(torch.cat([noise.initial(), *(noise.step(i) for i in range(80))]))


def test_elements_are_independent() -> None:
    assert_uncorrelated(SeededNoise(range(1000), (101,)).step(2).T)


def test_neighbours_in_seed_step_and_element_are_independent() -> None:
    """No diagonal either: seed + 1 with step - 1, or shifted by an element."""
    z = torch.stack([SeededNoise(range(8), (1500,)).step(i) for i in range(8)]).double()
    for shift in [(0, 1, 0), (1, 0, 0), (1, -1, 0), (0, 1, 1), (1, 0, -1), (0, 0, 1), (0, 0, 750)]:
        correlation = (z * z.roll(shift, dims=(0, 1, 2))).mean() * math.sqrt(z.numel())
        assert abs(correlation) < 4, shift


def test_no_two_streams_coincide() -> None:
    seeds = [*range(500), *(2**k - 1 for k in range(10, 49)), *(2**k for k in range(10, 48))]
    noise = SeededNoise(seeds, (2,), dtype=torch.float64)
    z = torch.cat([noise.initial(), *(noise.step(i) for i in (*range(60), 2**14, 2**15 - 2))])
    assert len(torch.unique(z, dim=0)) == len(z)


def test_an_image_depends_on_its_seed_alone() -> None:
    whole = SeededNoise([4, 9, 0, 2**40], SHAPE)
    for k, seed in enumerate([4, 9, 0, 2**40]):
        alone = SeededNoise([seed], SHAPE)
        assert torch.equal(alone.initial()[0], whole.initial()[k])
        assert torch.equal(alone.step(17)[0], whole.step(17)[k])
    assert torch.equal(whole.step(3), whole.step(3))


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 28, 28), (3, 5, 7), (0,)])
def test_shapes(shape: tuple[int, ...]) -> None:
    for batch in (0, 1, 5):
        noise = SeededNoise(range(batch), shape)
        assert noise.initial().shape == noise.step(0).shape == (batch, *shape)


def test_dtypes_share_their_bits() -> None:
    exact = SeededNoise([1, 2], SHAPE, dtype=torch.float64).step(0)
    assert exact.dtype == torch.float64
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)):
        z = SeededNoise([1, 2], SHAPE, dtype=dtype).step(0)
        assert z.dtype == dtype
        torch.testing.assert_close(z.double(), exact, rtol=tolerance, atol=tolerance)


def test_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    SeededNoise([1], SHAPE).step(0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("seeds", [torch.tensor([0, 3]), np.array([0, 3]), (0, 3), range(0, 6, 3)])
def test_takes_seeds_in_any_form(seeds) -> None:
    assert torch.equal(SeededNoise(seeds, SHAPE).initial(), SeededNoise([0, 3], SHAPE).initial())


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2**70])
def test_refuses_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 2\\*\\*48 - 1"):
        SeededNoise([1, seed], SHAPE)


@pytest.mark.parametrize("seed", [1.0, True, "1", None])
def test_refuses_seeds_that_are_no_integers(seed) -> None:
    with pytest.raises(TypeError, match="must be an integer"):
        SeededNoise([seed], SHAPE)


def test_refuses_other_nonsense() -> None:
    with pytest.raises(TypeError, match="floating"):
        SeededNoise([1], SHAPE, dtype=torch.int64)
    for i in (-1, 2**15 - 1):
        with pytest.raises(ValueError, match="a step is"):
            SeededNoise([1], SHAPE).step(i)


@pytest.mark.gpu
def test_is_the_same_on_a_gpu_and_in_a_graph() -> None:
    noise, there = SeededNoise(range(16), SHAPE), SeededNoise(range(16), SHAPE, device="cuda")
    torch.testing.assert_close(there.step(4).cpu(), noise.step(4), rtol=1e-5, atol=1e-5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z = there.step(5)
    graph.replay()
    torch.testing.assert_close(z.cpu(), noise.step(5), rtol=1e-5, atol=1e-5)
