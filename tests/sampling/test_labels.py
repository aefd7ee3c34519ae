import pytest
import torch
from tiny import network

from ersde_lit.denoisers import Denoiser
from ersde_lit.denoisers.guidance import ClassifierFree, EpsilonScaling
from ersde_lit.sampling.labels import choose_labels, labels_of, labels_of_seeds


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


# --- classes that were not trained


def test_random_labels_and_all_leave_untrained_classes_out():
    trained = (0, 3, 7)
    drawn = choose_labels(None, range(3000), 8, trained)
    assert {*drawn.tolist()} == {*trained}
    assert drawn.bincount(minlength=8)[list(trained)].min() > 900
    assert torch.equal(drawn, torch.tensor(trained)[labels_of_seeds(range(3000), 3)])
    assert choose_labels("all", range(5), 8, trained).tolist() == [0, 3, 7, 0, 3]
    assert choose_labels("none", range(2), 8, trained).tolist() == [-1, -1]


def test_where_all_are_trained_labels_are_those_of_ever():
    assert torch.equal(choose_labels(None, range(50), 10, None), labels_of_seeds(range(50), 10))
    assert torch.equal(choose_labels(None, range(50), 10, tuple(range(10))), labels_of_seeds(range(50), 10))


@pytest.mark.parametrize("choice", ["3", "0,3", "0-7", "dog"])
def test_an_untrained_class_is_refused(choice):
    names = ["a", "b", "c", "dog", "e", "f", "g", "h"]
    with pytest.raises(ValueError, match=r"^--labels .*had no training image; choose from 0,7"):
        choose_labels(choice, range(5), 8, (0, 7), names)


# --- names


NAMES = ("cat", "ankle boot", "T-shirt", "1", "tench, a fish", "3-4", "café")


@pytest.mark.parametrize(
    ("choice", "labels"),
    [
        ("cat", [0, 0, 0]),
        ("ankle boot", [1, 1, 1]),
        ("T-shirt,cat", [2, 0, 2]),
        ("cat, ankle boot", [0, 1, 0]),
        ("cat,5-6", [0, 5, 6]),
        ("1-1", [1, 1, 1]),  # the number, not the name
        ("tench, a fish", [4, 4, 4]),
        ("3-4", [3, 4, 3]),
        ("café", [6, 6, 6]),
        ("all", [0, 1, 2]),
    ],
)
def test_names(choice, labels):
    assert choose_labels(choice, range(3), 7, names=NAMES).tolist() == labels


@pytest.mark.parametrize(
    ("choice", "hint"),
    [("Cat", "did you mean 'cat'"), ("ankleboot", "did you mean 'ankle boot'"), ("zebra", "the model's are 'cat'"),
     ("cat,", "no class is named ''"), ("-1", "no class is named '-1'"), ("7", "no class 7")],
)  # fmt: skip
def test_unknown_names_are_refused_with_the_near_one(choice, hint):
    with pytest.raises(ValueError, match=r"^--labels ") as error:
        choose_labels(choice, range(3), 7, names=NAMES)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_of_two_classes_is_refused():
    with pytest.raises(ValueError, match="classes 0,2 are all named 'crane'"):
        choose_labels("crane", range(2), 3, names=("crane", "owl", "crane"))


def test_a_guided_denoiser_is_asked_through_its_wrappers():
    denoiser = Denoiser(network())
    denoiser.trained_classes, denoiser.class_names = (0, 2), ("cat", "dog", "emu")
    guided = EpsilonScaling(ClassifierFree(denoiser, 2.0), 1.01)
    assert {*labels_of(guided, None, range(50)).tolist()} == {0, 2}
    assert labels_of(guided, "emu", range(2)).tolist() == [2, 2]
    with pytest.raises(ValueError, match="no training image"):
        labels_of(guided, "dog", range(2))


def test_a_number_that_is_the_name_of_another_class_is_refused():
    with pytest.raises(ValueError, match=r"number of class 'ankle boot' and the name of class 3: write 1-1 or 3-3"):
        choose_labels("1", range(3), 7, names=NAMES)


@pytest.mark.parametrize(
    ("names", "choice", "label"),
    [(("1990", "1991", "2005"), "1991", 1), (("0", "1", "2"), "2", 2), (("1", "1000"), "1000", 1)],
)
def test_a_numeral_that_is_a_name_alone_or_its_own_number_is_that_class(names, choice, label):
    assert choose_labels(choice, range(2), len(names), names=names).tolist() == [label, label]


@pytest.mark.parametrize(("names", "choice"), [(("1", "1000"), "1"), (("-1", "0", "1"), "0"), (("00", "01", "1"), "1")])
def test_numerals_of_two_meanings_are_refused(names, choice):
    with pytest.raises(ValueError, match="is the number of class"):
        choose_labels(choice, range(2), len(names), names=names)
