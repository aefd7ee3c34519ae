"""Description of sampled images: plain data stored with them, sufficient to sample any of them again.

"seeds" as text, "options" of `sample` by name, "checkpoints" as SHA-256 by option. Other entries (paths, versions, the
device) may differ between two runs of the same images.
"""

import json
from typing import Any

from ersde_lit.errors import UserError, in_short
from ersde_lit.renamed import current_options

Meta = dict[str, Any]


def parse_meta(text: str) -> Meta:
    """Parses a description from JSON; raises ValueError where it is none."""
    meta = json.loads(text)
    kinds = {"seeds": str, "options": dict, "checkpoints": dict, "paths": dict}
    if not (isinstance(meta, dict) and all(isinstance(meta.get(key), kind) for key, kind in kinds.items())):
        raise UserError("not a description of images")
    return {**meta, "options": current_options(meta["options"])}


def differences(kept: Meta, new: Meta) -> str:
    """Differences of two descriptions in a few words; empty if the images are the same."""
    old, other = (
        {"seeds": meta["seeds"], **current_options(meta["options"]), **meta["checkpoints"]} for meta in (kept, new)
    )
    files = {*kept["checkpoints"], *new["checkpoints"]}

    def words(key: str) -> str:
        there, here = (in_short(options.get(key), 40) for options in (old, other))
        return f"{key} (another file)" if key in files else f"{key} ({there} there, {here} here)"

    differing = [words(key) for key in {**old, **other} if old.get(key) != other.get(key)]
    return ", ".join(differing[:3] + ["..."] * (len(differing) > 3))
