from itertools import pairwise

import pytest
import tiny
import torch

from ersde_lit.networks import DhariwalUNet, EDM2UNet, SongUNet
from ersde_lit.sampling.tiles import Tiles

TILES = Tiles(8, 12, overlap=3, multiple=4)


@pytest.mark.parametrize("size", [(8, 12), (9, 12), (8, 30), (3, 40), (40, 3), (1, 1), (33, 47), (16, 24)])
@pytest.mark.parametrize("tiles", [TILES, Tiles(8, 8, 0), Tiles(8, 8, 7)])
def test_tiles_of_an_image_make_the_image_to_the_bit(size, tiles: Tiles) -> None:
    image = torch.randn(3, *size)
    assert torch.equal(tiles.join(tiles.split(image), *size), image)


@pytest.mark.parametrize("size", [(3, 5), (8, 30), (33, 12), (33, 47)])
def test_weights_sum_to_one_and_fade_linearly(size) -> None:
    """Each tile's weight at a pixel is what is left of ones in that tile alone."""
    zeros = [torch.zeros_like(tile) for tile in TILES.split(torch.zeros(1, *size))]
    weights = []
    for k in range(len(zeros)):
        ones = torch.ones_like(zeros[k])
        weights.append(TILES.join([*zeros[:k], ones, *zeros[k + 1 :]], *size))
    torch.testing.assert_close(sum(weights), torch.ones(1, *size))
    assert min(float(weight.min()) for weight in weights) == 0 or len(weights) == 1
    if size == (8, 30):
        assert [round(float(w), 6) for w in weights[0][0, 0, 8:13]] == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("size", [(3, 5), (4, 12), (8, 30), (33, 12), (33, 47)])
def test_tiles_are_of_sizes_that_the_network_takes_and_overlap_enough(size) -> None:
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    tiles = TILES.split(torch.stack([rows, columns]).double())
    assert all(tile.shape[1] % 4 == tile.shape[2] % 4 == 0 for tile in tiles)
    for side, tile, axis in zip(size, (8, 12), (0, 1), strict=True):
        starts = sorted({int(one[axis, 0, 0]) for one in tiles})
        assert all(after <= before + tile - 3 for before, after in pairwise(starts))
        assert starts[-1] == max(side - tile, 0)


def test_small_images_are_mirrored_at_their_end_or_else_repeated() -> None:
    (mirrored,) = TILES.split(torch.arange(5.0).expand(1, 4, 5))
    assert mirrored[0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    (repeated,) = TILES.split(torch.arange(2.0).expand(1, 4, 2))
    assert repeated[0, 0].tolist() == [0, 1, 1, 1]


def test_tiles_are_as_large_as_the_network_s_images_if_nothing_is_said() -> None:
    plain, halving = tiny.network(image_shape=(1, 28, 24)), DhariwalUNet(16, 3, 3, model_channels=8, num_blocks=1)
    assert Tiles.of(plain) == Tiles(28, 24, 6)
    assert Tiles.of(halving, 64, 0) == Tiles(64, 64, 0, multiple=8)
    with pytest.raises(ValueError, match="--tile 30: the network takes sides that are multiples of 8"):
        Tiles.of(halving, 30)
    with pytest.raises(ValueError, match="--overlap 24: it must be smaller than a tile, 28x24"):
        Tiles.of(plain, overlap=24)


@pytest.mark.parametrize(
    "network",
    [
        lambda: tiny.network(image_shape=(3, 16, 16), multipliers=(1, 1), patch_size=2),
        lambda: SongUNet(16, 3, 3, model_channels=16, num_blocks=1),
        lambda: DhariwalUNet(16, 3, 3, model_channels=16, num_blocks=1),
        lambda: EDM2UNet(16, 3, 0, model_channels=8, num_blocks=1, channels_per_head=8),
    ],
)
def test_every_network_takes_images_of_its_multiple(network) -> None:
    net = network().eval()
    height, width = 3 * net.multiple, 5 * net.multiple
    assert net(torch.randn(1, 3, height, width), torch.zeros(1), None).shape == (1, 3, height, width)


@pytest.mark.parametrize("size", [(8, 12), (9, 12), (8, 30), (3, 40), (1, 1), (33, 47)])
def test_tiles_are_counted(size) -> None:
    assert TILES.count(*size) == len(TILES.split(torch.zeros(1, *size)))
