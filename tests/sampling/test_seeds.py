import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ersde_lit.sampling.seeds import MAX_SEED, format_seeds, parse_seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0-499", [*range(500)]),
        ("3,7,10-12", [3, 7, 10, 11, 12]),
        (" 5 , 1 - 2 ", [5, 1, 2]),
        ("7", [7]),
        ("4-4", [4]),
        ("007", [7]),
        ("12-13,10-11", [12, 13, 10, 11]),
        (str(MAX_SEED), [MAX_SEED]),
    ],
)
def test_reads_lists_and_ranges_in_order(text, seeds):
    assert list(parse_seeds(text)) == seeds


WRONG = ["", " ", ",", "a", "3-", "-3", "5-3", "1,,2", "1,", "1.5", "1e3", "0x10", "1-2-3", "0..5", "1 2", "+1", "１"]
DOUBLE = ["0-5,3", "3,3", "1-4,4-6"]
BIG = [f"{MAX_SEED + 1}", "9" * 30, f"{2**64}"]


@pytest.mark.parametrize("text", WRONG + DOUBLE + BIG)
def test_refuses_anything_else_in_one_line(text):
    with pytest.raises(ValueError, match=r"^--seeds ") as error:
        parse_seeds(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [*BIG, f"0-{2**64}", f"5,{2**63}"])
def test_names_the_largest_seed_where_one_is_above(text):
    with pytest.raises(ValueError, match=f"above the largest.*{MAX_SEED}"):
        parse_seeds(text)


def test_names_the_seed_that_is_given_twice():
    with pytest.raises(ValueError, match="3 is given twice"):
        parse_seeds("10,0-5,3")


def test_a_huge_range_costs_nothing():
    seeds = parse_seeds(f"0-{MAX_SEED}")
    assert len(seeds) == MAX_SEED + 1
    assert list(seeds[-2:]) == [MAX_SEED - 1, MAX_SEED]


@given(st.lists(st.integers(0, 60), unique=True, min_size=1))
def test_format_is_the_inverse_and_keeps_the_order(seeds):
    assert list(parse_seeds(format_seeds(seeds))) == seeds


def test_format_is_short():
    assert format_seeds(range(50000)) == "0-49999"
    assert format_seeds([3, 7, 10, 11, 12]) == "3,7,10-12"


def test_the_largest_seed_is_that_of_the_noise():
    from ersde_lit.solvers import noise

    assert noise.MAX_SEED == MAX_SEED


def test_seeds_and_outputs_are_checked_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import ersde_lit.sampling.seeds, ersde_lit.files, ersde_lit.sampling.formats"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
