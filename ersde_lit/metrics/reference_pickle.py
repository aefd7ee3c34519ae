"""EDM2's reference statistics (Karras et al. 2024; github.com/NVlabs/edm2), pickled arrays, read without unpickling."""

import mmap
from pathlib import Path
from typing import Any

from ersde_lit.errors import UserError
from ersde_lit.untrusted.pickled_tensors import ARRAYS, array
from ersde_lit.untrusted.restricted_pickle import Refused, read_pickle


def read_statistics(path: str | Path, metric: str = "fid") -> dict[str, Any]:
    """Arrays `mu` and `sigma` of a metric's features, and `num_images` if given; refuses hostile files.

    Args:
        metric: "fid" (Inception) or "fd_dinov2".
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
            content = read_pickle(stream, ARRAYS)
        kept = content.get(metric) if isinstance(content, dict) else None
        if not isinstance(kept, dict) or not {"mu", "sigma"} <= kept.keys():
            raise Refused(f"it holds no statistics 'mu' and 'sigma' as {metric!r}, as EDM2's calculate_metrics.py does")
        found = {name: array(kept[name]) for name in ("mu", "sigma")}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    count = content.get("num_images")
    return found | ({"num_images": count} if isinstance(count, int) else {})
