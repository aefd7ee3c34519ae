import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from quick_start import SMALL_GRID, fit

from ersde_lit.analysis import plot as of_analysis
from ersde_lit.cli import main
from ersde_lit.sweeps import plot as of_sweep


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, cache):
    """A folder with a finished run of the quick start's configuration, cut to seconds."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(fit(*SMALL_GRID)) == 0
    return folder


@pytest.fixture(scope="module")
def copy_of_workplace(workplace, tmp_path_factory):
    """Each file of tests has its own, as their order and process are not known."""
    return Path(shutil.copytree(workplace, tmp_path_factory.mktemp("copies") / "workplace"))


@pytest.fixture
def inside(copy_of_workplace, monkeypatch):
    monkeypatch.chdir(copy_of_workplace)
    return copy_of_workplace


@pytest.fixture
def real_plots() -> None:
    """Plots are drawn as they are: see `quick_plots`."""


@pytest.fixture(autouse=True)
def quick_plots(request, monkeypatch) -> None:
    """An empty picture in place of every plot that no test looks at: matplotlib takes seconds for them."""
    if "real_plots" not in request.fixturenames:
        for plots in (of_analysis, of_sweep):
            monkeypatch.setattr(plots, "draw", lambda *given: Figure((0.1, 0.1)))
