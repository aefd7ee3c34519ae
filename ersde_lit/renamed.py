"""Class paths that have moved, so that configurations, checkpoints and cells which name the old ones still load."""

from typing import Any

RENAMED = {
    "ersde_lit.evaluation.FIDCallback": "ersde_lit.callbacks.FIDCallback",
    "ersde_lit.evaluation.Classifier": "ersde_lit.metrics.Classifier",
    "ersde_lit.evaluation.Inception": "ersde_lit.metrics.Inception",
    "ersde_lit.training.AdamW": "ersde_lit.training.AdamWConfig",
    "ersde_lit.training.optimizer.AdamW": "ersde_lit.training.optimizer.AdamWConfig",
}


def current(value: Any) -> Any:
    """Plain data with each class path that has moved replaced by today's."""
    if isinstance(value, dict):
        return {key: current(item) for key, item in value.items()}
    if isinstance(value, list):
        return [current(item) for item in value]
    return RENAMED.get(value, value) if isinstance(value, str) else value
