import torch
from hypothesis import given
from hypothesis import strategies as st
from projection import some_images

from ersde_lit.metrics.reservoir import Sample, image_keys


def test_copies_share_a_key_and_a_grey_level_makes_another():
    images = some_images(500, 0)
    keys = image_keys(images)
    assert keys.dtype == torch.int64
    assert len(keys.unique()) == 500
    assert torch.equal(image_keys(images[7:9].clone()), keys[7:9])
    changed = images.clone()
    changed[:, 1, 2, 3] ^= 1
    assert not (image_keys(changed) == keys).any()
    assert image_keys(images[:0]).shape == (0,)


def test_keys_spread_evenly():
    """Of images that are much alike, too: the highest bits make a uniform number."""
    near = torch.full((4000, 2, 4, 4), 100, dtype=torch.uint8) + some_images(4000, 1, 0, 2)
    uniform = image_keys(near).double() / 2.0**64 + 0.5
    assert (uniform.histc(10, 0, 1) / 400 - 1).abs().max() < 0.2


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(1, 20), st.integers(1, 9))
def test_is_the_lowest_keys_however_they_come(numbers, limit, batch):
    sample = Sample(1, limit)
    keys = torch.tensor(numbers)
    for part in keys.split(batch):
        sample.update(part, part[:, None].float())
    rows, count, copies = sample.compute()
    assert rows.flatten().tolist() == sorted(numbers)[:limit]
    assert (count, copies) == (len(numbers), len(numbers) - len(set(numbers)))
