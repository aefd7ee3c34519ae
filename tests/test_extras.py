"""Optional packages and modules of POSIX systems may be absent: imports pass, and a line says what to install."""

import subprocess
import sys

import pytest

IMPORTS = "import ersde_lit.data, ersde_lit.metrics, ersde_lit.callbacks, ersde_lit.cli"
MORE = """, ersde_lit.sampling.run, ersde_lit.sweeps.sweep, ersde_lit.training, ersde_lit.evaluation
import ersde_lit.cli.analyze, ersde_lit.cli.evaluate, ersde_lit.cli.files, ersde_lit.cli.fit, ersde_lit.cli.sample
import ersde_lit.interop.k_diffusion, ersde_lit.interop.weights.sources"""
EMOJI = "ersde_lit.data.Emoji(root='data', font='no.ttf').prepare_data()"
INCEPTION = "from ersde_lit.metrics.inception import _network; _network({}, None)"
PLOT = "from ersde_lit.sweeps.report import Report; Report([], ['fid']).plot('x.png', 'fid')"
ANALYZE = "from ersde_lit.cli import main; main(['analyze', '--out=a', '--nfe=4', '--solvers=ddim'])"


BLOCK = """
import sys
import lightning.pytorch, torchmetrics.image.fid, torchmetrics.image.inception, torchmetrics.image.kid

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in BLOCKED]:
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
"""


def run(tmp_path, blocked: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Runs code that cannot import some modules; other packages are imported before, with all they find."""
    code = f"BLOCKED = {blocked}\n{BLOCK}\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("blocked", "extra", "code"),
    [
        (("fontTools",), "emoji", EMOJI),
        (("torch_fidelity", "tqdm"), "fid", INCEPTION),
        (("matplotlib",), "plot", PLOT),
    ],
)
def test_an_absent_extra_is_named_where_it_is_needed(tmp_path, blocked, extra, code):
    ended = run(tmp_path, blocked, f"{IMPORTS}\n{code}")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert "UserError" in last
    assert f'pip install "ersde-lit[{extra}]"' in last


def test_numbers_are_written_without_matplotlib(tmp_path):
    ended = run(tmp_path, ("matplotlib",), ANALYZE)
    assert "no plot" in ended.stdout, ended.stderr
    assert 'pip install "ersde-lit[plot]"' in ended.stdout
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"analysis.csv", "analysis.md"}


def test_the_package_imports_without_extras_and_posix_modules(tmp_path):
    ended = run(tmp_path, ("fcntl", "resource", "fontTools", "torch_fidelity", "matplotlib"), IMPORTS + MORE)
    assert ended.returncode == 0, ended.stderr
