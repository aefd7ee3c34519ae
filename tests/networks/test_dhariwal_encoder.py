"""Its outputs are compared with the published implementation's in tests/interop/test_guided_diffusion.py."""

import pytest
import torch

from ersde_lit.networks import DhariwalClassifierEncoder
from ersde_lit.training.spec import build, describe

ARGUMENTS = {"img_resolution": 8, "in_channels": 3, "label_dim": 5, "model_channels": 64, "channel_mult": [1, 2],
             "num_blocks": 1, "attn_resolutions": [4]}  # fmt: skip


def test_logits_depend_on_image_and_noise_level_and_on_nothing_else() -> None:
    torch.manual_seed(0)
    net = DhariwalClassifierEncoder(**ARGUMENTS).eval()
    x, c_noise = torch.randn(3, 3, 8, 8), torch.tensor([1.0, 20.0, 300.0])
    logits = net(x, c_noise)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(net(x[1:2], c_noise[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    assert torch.equal(net(x, c_noise, torch.tensor([0, 1, 2]), torch.ones(3, 9)), logits)
    assert (net(x, c_noise + 1) != logits).any(1).all()
    assert (net(x.flip(0), c_noise) != logits).any(1)[[0, 2]].all()


def test_pooling_sees_where_things_are() -> None:
    torch.manual_seed(0)
    pool = DhariwalClassifierEncoder(**ARGUMENTS).pool
    x = torch.randn(1, 128, 4, 4)
    assert not torch.allclose(pool(x), pool(x.flip(-1)))
    torch.nn.init.zeros_(pool.positional_embedding)
    torch.testing.assert_close(pool(x), pool(x.flip(-1)))


def test_plain_data_rebuilds_it() -> None:
    net = DhariwalClassifierEncoder(**ARGUMENTS)
    assert build(describe(net)).state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label_dim": 1}, "at least 2 classes"),
        ({"img_resolution": 9}, "does not allow 2 levels"),
        ({"channel_mult": []}, "does not allow 0 levels"),
        ({"num_blocks": 0}, "num_blocks must be positive"),
        ({"channels_per_head": 0}, "channels_per_head must be positive, got 0"),
    ],
)
def test_impossible_sizes_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DhariwalClassifierEncoder(**{**ARGUMENTS, **wrong})
