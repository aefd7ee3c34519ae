"""A few kills of real processes; `tools/kill_training.py` makes 20."""

import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_runs_end_like_an_undisturbed_one(monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "tools")
    import kill_training

    assert kill_training.main(kills=3, kills_a_run=3, epochs=15, seed=1) == 0
    assert "3 of 3 kills did no harm" in capsys.readouterr().out
    sys.modules.pop("kill_training")
