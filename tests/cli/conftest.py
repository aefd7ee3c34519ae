import pytest
from quick_start import SMALL_GRID, fit

from ersde_lit.cli import main


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """A folder with a finished run of the quick start's configuration, cut to seconds."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert main(fit(*SMALL_GRID)) == 0
    return folder


@pytest.fixture
def inside(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    return workplace
