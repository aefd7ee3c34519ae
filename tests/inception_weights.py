"""Inception's weights at random, in the file that torch-fidelity publishes the real ones in."""

from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch_fidelity import feature_extractor_inceptionv3 as published


def random_weights(path: Path, seed: int = 0) -> dict[str, Tensor]:
    """Writes and returns a state dict: He's initialisation, under which images keep their differences to the end."""
    network = published.FeatureExtractorInceptionV3
    nothing = {"load_state_dict": lambda *_: None}
    with patch.object(published, "load_state_dict_from_url", lambda *_, **__: None), patch.multiple(network, **nothing):
        state = network("random", ["2048"]).state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name, value in state.items():
        if value.dim() > 1:
            fan_in = value[0].numel()
            value.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        elif name == "fc.bias":
            value.zero_()
    torch.save(state, path)
    return state
