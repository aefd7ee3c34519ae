import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ersde_lit.data.order import SeededOrder, run_seed


def epochs(order: SeededOrder, count: int) -> list[list[int]]:
    dealt = []
    for epoch in range(count):
        order.set_epoch(epoch)
        dealt.append(list(order))
    return dealt


def test_every_epoch_visits_each_image_once_in_an_order_of_its_own() -> None:
    first, second = epochs(SeededOrder(range(100), 10), 2)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second


def test_orders_depend_on_the_seed_and_on_nothing_else() -> None:
    torch.manual_seed(5)
    once = epochs(SeededOrder(range(100), 10, seed=1), 3)
    torch.manual_seed(6)
    assert epochs(SeededOrder(range(100), 10, seed=1), 3) == once
    other = epochs(SeededOrder(range(100), 10, seed=0), 4)
    assert not any(order in other for order in once)  # nor is it another seed's, an epoch later


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 30), st.sampled_from([1, 2, 2**32]))
def test_all_ranks_together_take_the_same_images_in_every_step(ranks: int, share: int, extra: int, kinds: int) -> None:
    batch, images = ranks * share, range(ranks * share * 3 + extra)
    whole = list(SeededOrder(images, batch, variants=kinds))
    shares = [list(SeededOrder(images, batch, rank, ranks, variants=kinds)) for rank in range(ranks)]
    assert all(len(part) == len(SeededOrder(images, batch, 0, ranks)) for part in shares)
    dealt = [index for together in zip(*shares, strict=True) for index in together]
    assert dealt == whole  # so any batch, of any size, is made of neighbours in the one order
    assert len(whole) == len(images) // batch * batch


def test_a_resumed_epoch_goes_on_where_it_was() -> None:
    whole = list(SeededOrder(range(40), 8, 1, 2))
    assert list(SeededOrder(range(40), 8, 1, 2, done=lambda: 12)) == whole[12:]


def test_where_to_go_on_is_asked_when_the_first_image_is_dealt() -> None:
    done = 0
    order = SeededOrder(range(40), 8, done=lambda: done)
    loader = iter(torch.utils.data.DataLoader(range(40), batch_size=8, sampler=order))  # Lightning makes it early
    done = 32
    assert next(loader).tolist() == list(SeededOrder(range(40), 8))[32:]


def test_flips_mirror_half_of_the_images_and_change_no_order() -> None:
    plain, flipped = list(SeededOrder(range(1000), 10)), list(SeededOrder(range(1000), 10, variants=2))
    assert [index % 1000 for index in flipped] == plain
    assert 420 < sum(index >= 1000 for index in flipped) < 580


@pytest.mark.parametrize(("value", "seed"), [(None, 0), ("7", 7)])
def test_the_seed_is_that_of_seed_everything(monkeypatch, value: str | None, seed: int) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    if value is not None:
        monkeypatch.setenv("PL_GLOBAL_SEED", value)
    assert run_seed() == seed
