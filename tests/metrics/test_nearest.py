import torch
from hypothesis import given
from hypothesis import strategies as st

from ersde_lit.metrics import nearest_distances


def images(n, seed):
    return torch.randint(256, (n, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 8), st.integers(0, 5))
def test_is_the_root_mean_square_difference_to_the_best_of_all(n, count, chunk, seed):
    x, references = images(n, seed), images(count, seed + 100)
    pairs = (x.double()[:, None] - references.double()[None]).square().mean((2, 3, 4)).sqrt()
    torch.testing.assert_close(nearest_distances(x, references, chunk), pairs.amin(1).float(), rtol=1e-4, atol=0)


def test_copies_are_at_exactly_zero_even_among_bright_images():
    references = 255 - images(500, 0) // 16
    assert torch.equal(nearest_distances(references[100:130], references, 64), torch.zeros(30))


def test_one_grey_level_everywhere_is_a_distance_of_one():
    references = images(10, 0) // 2
    assert torch.equal(nearest_distances(references + 1, references), torch.ones(10))
