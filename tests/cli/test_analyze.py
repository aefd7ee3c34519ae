import csv
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from ersde_lit.cli import main
from ersde_lit.solvers import ERSDE, DPMSolverPP, default, grids
from ersde_lit.solvers.oracles import Gaussian, w2_error

LAST = "runs/digits/checkpoints/last.ckpt"
FEW = ("--seeds=0-3", "--substeps=2", "--nfe=5")


def analyze(*options: str) -> int:
    return main(["analyze", *options])


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(path: Path) -> dict[tuple[str, str], list[float]]:
    """Values by quantity and curve, step by step; NaN where there is none."""
    curves = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            assert int(row["step"]) == len(curves[row["quantity"], row["curve"]])
            curves[row["quantity"], row["curve"]].append(float(row["value"] or "nan"))
    return dict(curves)


@pytest.mark.usefixtures("real_plots")
def test_what_is_written(here, capsys) -> None:
    assert analyze("--out=a", "--nfe=6", "--solvers=er_sde,dpm++2m", "--noise_scales=ode,sde", "--seeds=0-3") == 0
    curves = read(here / "a" / "analysis.csv")
    solvers = {"er_sde ode": ERSDE(3, "ode"), "er_sde sde": ERSDE(3, "sde"), "dpm++2m": DPMSolverPP()}
    lams = grids.edm(6)
    assert {name for quantity, name in curves if quantity == "kappa"} == {"phi ode", "phi sde"}
    for name, solver in solvers.items():
        error = w2_error(Gaussian.spectrum(), solver.tableau(lams))
        assert curves["w2", name][-1] == pytest.approx(error, rel=1e-6)
        assert f"| {name} | {error:.3g} |" in capsys.readouterr().out + (here / "a" / "analysis.md").read_text()
    assert curves["euler_coefficient", "phi sde"] == pytest.approx((1 - (lams[1:] / lams[:-1]) ** 2).tolist())
    assert curves["b", "phi sde"] == pytest.approx(ERSDE(1, "sde").tableau(lams).b.tolist(), rel=1e-6)
    assert curves["b", "phi ode"] == [0] * 6
    assert curves["kappa", "phi sde"] == [2] * 6
    assert {len(values) for values in curves.values()} == {6}
    text = (here / "a" / "analysis.md").read_text()
    assert "--solvers=er_sde,dpm++2m --noise_scales=ode,sde" in text
    assert "-0 |" not in text
    with Image.open(here / "a" / "analysis.png") as image:
        assert image.size == (1800, 880)
    assert {path.name for path in (here / "a").iterdir()} == {"analysis.png", "analysis.csv", "analysis.md"}


def test_options_of_solvers_and_of_the_grid(here) -> None:
    inline = "er_sde:order=1,er_sde:order=2:noise_scale=er_sde_3:corrector=2,default,ipndm:order=2,er_sde:paper"
    assert analyze("--out=b.png", f"--solvers={inline}", "--noise_scales=ode", "--sigma_max=20", "--rho=5", *FEW) == 0
    curves = read(here / "b.csv")
    given = {
        "er_sde:order=1 ode": ERSDE(1, "ode"),
        "er_sde:order=2:noise_scale=er_sde_3:corrector=2": ERSDE(2, "er_sde_3", corrector=2),
        "er_sde:paper ode": ERSDE(3, "ode", paper=True),
    }
    lams = grids.edm(5, lam_max=20.0, rho=5.0)
    for name, solver in given.items():
        error = w2_error(Gaussian.spectrum(), solver.tableau(lams))
        assert curves["w2", name][-1] == pytest.approx(error, rel=1e-6)
    names = {name for quantity, name in curves if quantity == "one_step_w2"}
    assert names == {*given, "default", "ipndm:order=2"}
    assert {"phi ode", "phi er_sde_3"} <= {name for _, name in curves}
    solver = default(5).solver
    assert f"default is {solver}." in (here / "b.md").read_text()
    assert curves["w2", "default"][-1] == pytest.approx(w2_error(Gaussian.spectrum(), solver.tableau(lams)), rel=1e-6)


def test_a_checkpoint(inside, capsys) -> None:
    options = (f"--ckpt_path={LAST}", "--solvers=er_sde,unipc2", "--noise_scales=ode,sde", *FEW)
    assert analyze("--out=of_digits", *options) == 0
    curves = read(inside / "of_digits" / "analysis.csv")
    for name in ("er_sde ode", "er_sde sde", "unipc2"):
        for quantity in ("one_step_rms", "rms"):
            values = torch.tensor(curves[quantity, name])
            assert (values[:-1] > 0).all()
            assert values[-1].isnan()
    assert curves["one_step_rms", "er_sde ode"][0] == pytest.approx(curves["rms", "er_sde ode"][0])
    assert "checkpoint: RMS of one step alone" in (inside / "of_digits" / "analysis.md").read_text()
    assert analyze("--out=again", *options, "--batch_size=3") == 0
    again = read(inside / "again" / "analysis.csv")
    assert all(again[key] == pytest.approx(values, rel=1e-3, nan_ok=True) for key, values in curves.items())
    assert analyze("--out=in_time", *options, "--grid=uniform_t", "--labels=3") == 0


def test_raw_weights_are_not_analysed(inside, monkeypatch) -> None:
    """Averaged ones are: with the raw network broken nothing changes."""
    from ersde_lit import training

    options = (f"--ckpt_path={LAST}", "--solvers=unipc2", *FEW)
    assert analyze("--out=ema", *options) == 0
    load = training.load

    def broken(*arguments):
        model = load(*arguments)
        for weight in model.denoiser.parameters():
            weight.data.fill_(torch.nan)
        return model

    monkeypatch.setattr(training, "load", broken)
    assert analyze("--out=ema_again", *options) == 0
    assert (inside / "ema" / "analysis.csv").read_bytes() == (inside / "ema_again" / "analysis.csv").read_bytes()


def test_yaml(here) -> None:
    (here / "options.yaml").write_text("solvers: [ddim, 'er_sde:order=2']\nnoise_scales: sde\nnfe: 4\nseeds: 0-3\n")
    assert analyze("--config=options.yaml", "--out=c", "--substeps=2") == 0
    assert ("w2", "er_sde:order=2 sde") in read(here / "c" / "analysis.csv")


def test_the_same_command_replaces_its_own_files_alone(here, capsys) -> None:
    assert analyze("--out=d", *FEW) == 0
    before = (here / "d" / "analysis.csv").read_text()
    assert analyze("--out=d", *FEW, "--nfe=4") == 0
    assert (here / "d" / "analysis.csv").read_text() != before
    for name, content in (("analysis.csv", "a,b\n"), ("analysis.md", "# mine\n")):
        (here / "d" / name).rename(here / "kept")
        (here / "d" / name).write_text(content)
        assert analyze("--out=d", *FEW) == 2
        assert "no analysis has made it" in capsys.readouterr().err
        assert (here / "d" / name).read_text() == content
        (here / "kept").rename(here / "d" / name)
    Image.new("RGB", (4, 4)).save(here / "mine.png")
    assert analyze("--out=mine.png", *FEW) == 2
    assert "no analysis has made it" in capsys.readouterr().err
    assert not (here / "mine.csv").exists()


def test_what_fails_leaves_nothing(here, monkeypatch) -> None:
    from ersde_lit.analysis import plot as analysis_plot

    assert analyze("--out=e.png", *FEW) == 0
    before = {path.name: path.read_bytes() for path in here.iterdir()}

    def full(analysis, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(analysis_plot, "save", full)
    assert analyze("--out=e.png", *FEW, "--nfe=4") == 2
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nfe=1"], "take 2 or more"),
        (["--nfe=0"], "nfe"),
        (["--solvers=heun"], "twice a step"),
        (["--solvers=ddim,dpm++2m:rho=3"], "leave rho out"),
        (["--solvers=er_sde:add_mean"], "leave add_mean out"),
        (["--solvers=er_sd"], "er_sde"),
        (["--solvers=er_sde:steps=3"], "no option 'steps'"),
        (["--solvers=er_sde:order=0"], "order"),
        (["--solvers=ddim:order=2"], "no option 'order'"),
        (["--solvers=er_sde:nodes=log", "--noise_scales=sde"], "unstable"),
        (["--solvers="], "nothing to analyse"),
        (["--noise_scales=er_sde_9"], "unknown noise scale 'er_sde_9'"),
        (["--noise_scales=er_sde_4", "--sigma_max=5000"], "not valid"),
        (["--grid=edn"], "edm"),
        (["--grid=vp_linear", "--rho=5"], "no option 'rho'"),
        (["--grid=uniform_t"], "--ckpt_path"),
        (["--labels=3"], "--ckpt_path"),
        (["--ckpt_path=absent.ckpt"], "nothing at --ckpt_path absent.ckpt"),
        (["--seeds=5-2"], "downwards"),
        (["--out=absent/x"], "there is no folder"),
        (["--out=x.pdf"], "ends in .png"),
        (["--substeps=0"], "substeps"),
        (["--substeps=1000000"], "substeps"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(here, capsys, options: list[str], message: str) -> None:
    assert analyze("--out=x", *options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert message in printed.err
    assert not [*here.iterdir()]


def test_numbers_in_yaml_are_seeds_and_labels(inside) -> None:
    Path("numbers.yaml").write_text("seeds: 2\nlabels: 3\n")
    how = [f"--ckpt_path={LAST}", "--solvers=ddim", "--substeps=2", "--nfe=3"]
    assert analyze("--out=by_numbers", "--config=numbers.yaml", *how) == 0
    assert analyze("--out=by_text", "--seeds=2", "--labels=3", *how) == 0
    assert Path("by_numbers/analysis.csv").read_text() == Path("by_text/analysis.csv").read_text()


def test_labels_that_the_model_lacks(inside, capsys) -> None:
    assert analyze("--out=lacking", f"--ckpt_path={LAST}", "--labels=12", *FEW) == 2
    assert "no class 12" in capsys.readouterr().err
