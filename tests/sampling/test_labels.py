import pytest
import torch

from ersde_lit.sampling.labels import choose_labels, labels_of_seeds


@pytest.mark.parametrize(
    ("choice", "labels"),
    [
        ("3", [3, 3, 3, 3, 3]),
        ("0,1,5-6", [0, 1, 5, 6, 0]),
        ("2,2,0", [2, 2, 0, 2, 2]),
        ("all", [0, 1, 2, 3, 4]),
        ("none", [-1, -1, -1, -1, -1]),
    ],
)
def test_choices(choice, labels):
    assert choose_labels(choice, range(5), 7).tolist() == labels
    assert choose_labels(choice, [4, 2], 7).tolist() == [labels[4], labels[2]]  # by seed, not by place


def test_random_unless_said_otherwise():
    assert torch.equal(choose_labels(None, range(50), 10), labels_of_seeds(range(50), 10))
    assert torch.equal(choose_labels("random", range(50), 10), labels_of_seeds(range(50), 10))


def test_unconditional_has_none():
    assert choose_labels(None, range(5), 0) is None
    with pytest.raises(ValueError, match="unconditional"):
        choose_labels("3", range(5), 0)


@pytest.mark.parametrize("choice", ["10", "0-10", "0,99", "-1", "cat", "", "1.0", "3-1", "All", "0-99999999999999"])
def test_bad_choices(choice):
    with pytest.raises(ValueError, match=r"^--labels ") as error:
        choose_labels(choice, range(5), 10)
    assert "\n" not in str(error.value)
