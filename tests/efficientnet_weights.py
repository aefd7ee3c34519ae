"""EfficientNet-Lite0's weights by a hash, the same on every machine, in the file that its package holds."""

from pathlib import Path

import torch
from hashed_weights import hashed
from torch import Tensor

from ersde_lit.metrics.efficientnet import Lite0


def hashed_lite0(path: Path) -> dict[str, Tensor]:
    """Writes and returns a state dict; variances are below 1, so that images keep their differences to the end."""
    with torch.device("meta"):
        network = Lite0()
    state = hashed({name: [*value.shape] for name, value in network.state_dict().items()})
    for name, value in state.items():
        if name.endswith("running_var"):
            state[name] = 0.7 + value
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
    torch.save(state, path)
    return state
