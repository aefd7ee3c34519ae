import numpy as np
import pytest

from ersde_lit.data.classes import about_empty, about_names, number_folders


@pytest.mark.parametrize(
    ("labels", "classes", "line"),
    [
        ([0, 7], 8, "classes 1 to 6 hold no image"),
        ([1, 2], 3, "class 0 holds no image"),
        ([0, 3, 4], 7, "classes 1 to 2, 5 to 6 hold no image"),
        ([5], 2**31, "classes 0 to 4, 6 to 2147483647 hold no image"),
    ],
)
def test_empty_classes_in_words(labels, classes, line):
    assert about_empty(np.array(labels), classes) == (line,)


def test_nothing_to_say():
    assert about_empty(np.array([2, 0, 1, 1]), 3) == ()
    assert about_empty(np.full(3, -1), 0) == ()


def test_very_many_gaps_stay_a_line():
    (line,) = about_empty(np.arange(0, 1000, 2), 1000)
    assert line.startswith("classes 1, 3, 5,")
    assert line.endswith(", ... hold no image")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["b", "a", "10"], {"10": 0, "a": 1, "b": 2}),
        ([str(k) for k in range(12)], {str(k): k for k in range(12)}),
        (["00", "01", "02"], {"00": 0, "01": 1, "02": 2}),
        (["0", "7"], {"0": 0, "7": 7}),
        (["10", "9"], {"9": 9, "10": 10}),
        (["2001", "1999"], {"1999": 0, "2001": 1}),
        (["10000", "9999"], {"9999": 0, "10000": 1}),
        (["1", "01"], {"01": 0, "1": 1}),
        (["n02", "n01"], {"n01": 0, "n02": 1}),
        (["²", "1"], {"1": 0, "²": 1}),
    ],
)
def test_labels_of_folders(names, labels):
    assert number_folders(names) == labels


def test_names_with_their_labels():
    assert about_names(["cat", "dog"]) == "labels: 0 = cat, 1 = dog"
    assert about_names([f"n{k}" for k in range(21)]) == "labels: 0 = n0, 1 = n1, 2 = n2, ..., 19 = n19, 20 = n20"
