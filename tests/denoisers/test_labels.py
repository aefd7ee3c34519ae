import pytest
import torch
from scipy import stats

from ersde_lit.denoisers.labels import labels_for, labels_of_seeds


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("seeds", [range(50_000), range(0, 3_000_000, 64), range(2**40, 2**40 + 20_000)])
def test_uniform_by_chi_square(num_classes, seeds):
    counts = labels_of_seeds(seeds, num_classes).bincount(minlength=num_classes)
    assert len(counts) == num_classes
    assert 1e-3 < stats.chisquare(counts.numpy()).pvalue < 1 - 1e-3


def test_labels_of_neighbours_are_independent():
    labels = labels_of_seeds(range(100_001), 10)
    pairs = (10 * labels[1:] + labels[:-1]).bincount(minlength=100).reshape(10, 10)
    assert stats.chi2_contingency(pairs.numpy()).pvalue > 1e-3


def test_label_depends_on_its_seed_alone():
    together = labels_of_seeds(range(100), 10)
    assert torch.equal(labels_of_seeds([7, 3, 99], 10), together[[7, 3, 99]])
    assert together.dtype == torch.int64


def test_values_never_change():
    """They are in people's files: image k must keep its label."""
    assert labels_of_seeds(range(12), 10).tolist() == [8, 4, 0, 9, 1, 3, 1, 7, 2, 9, 3, 7]
    assert labels_of_seeds([2**48 - 1], 1000).tolist() == [648]


def test_is_splitmix64():
    """First outputs of SplitMix64 from state 0, as published with it (and in java.util.SplittableRandom(0))."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert labels_of_seeds(range(4), 2**31).tolist() == [z >> 33 for z in published]


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 2],
        torch.tensor([2, 1, 0]),
        torch.tensor([-1, 0, 2], dtype=torch.int32),
        torch.tensor([0, 1, 2], dtype=torch.uint8),
        torch.tensor([0, 1, 2], dtype=torch.uint16),
    ],
)
def test_check_accepts(labels):
    checked = labels_for(range(3), labels, 3)
    assert checked.dtype == torch.int64
    assert checked.tolist() == list(labels)


@pytest.mark.parametrize(
    "labels",
    [[0, 1], [0, 1, 3], [-2, 0, 0], [0.0, 1, 2], [[0], [1], [2]], [True, True, False], [], [0, 1, 2j], [0, 0, 200]],
)
def test_check_refuses(labels):
    with pytest.raises(ValueError, match="labels"):
        labels_for(range(3), labels, 3)


def test_check_refuses_labels_of_an_unconditional_model():
    with pytest.raises(ValueError, match="unconditional"):
        labels_for(range(3), [0, 0, 0], 0)


def test_labels_are_checked_drawn_or_none():
    assert torch.equal(labels_for([7, 3], None, 10), labels_of_seeds([7, 3], 10))
    assert labels_for([7, 3], [-1, 9], 10).tolist() == [-1, 9]
    assert labels_for([7, 3], None, 0) is None
    with pytest.raises(ValueError, match="unconditional"):
        labels_for([7, 3], [0, 0], 0)
    with pytest.raises(ValueError, match=r"one an image: \[2\], not torch.int64 \[1\]"):
        labels_for([7, 3], [0], 10)


def test_untrained_classes_are_neither_drawn_nor_taken():
    assert {*labels_of_seeds(range(200), 8, (1, 6)).tolist()} == {1, 6}
    assert labels_for([7, 3], [1, -1], 8, (1, 6)).tolist() == [1, -1]
    with pytest.raises(ValueError, match="class 0 had no training image"):
        labels_for([7, 3], [1, 0], 8, (1, 6))
