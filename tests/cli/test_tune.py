"""Command `tune`: tables learned for a checkpoint, kept in a file."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick_start import CONFIGS
from ranks import run_on_ranks
from tiny import network

import ersde_lit.cli.options.tuning as of_options
import ersde_lit.cli.tune as command
from ersde_lit.cli import main
from ersde_lit.denoisers import VE, VP
from ersde_lit.metrics import Features
from ersde_lit.sampling.formats import read_meta
from ersde_lit.solvers import SavedTables, UniPC, default, grids, read_tables, write_tables
from ersde_lit.training import DiffusionModule, load, weights_digest
from ersde_lit.training.averaged import SPEC_KEY
from ersde_lit.tuning import STAGES, Problem, TableTuner, Tuned
from ersde_lit.tuning.tune import FREEDOMS_OF

SMALL = [
    "--data=tiny.Pictures", "--stages=drift,noise", "--steps=6", "--batch_size=50", "--stopping=100", "--images=16",
    "--accelerator=cpu",
]  # fmt: skip


def checkpoint(
    path: str, seed: int = 0, process: Any = None, preconditioning: str = "edm", prediction: str = "edm", **how
):
    torch.manual_seed(seed)
    module = DiffusionModule(network(**how), process or VE(), preconditioning, prediction)
    with torch.no_grad():
        for weight in module.ema_denoiser.parameters():
            weight.normal_(std=0.2)
    torch.save({"state_dict": module.state_dict(), SPEC_KEY: module.spec}, path)


@pytest.fixture(scope="module")
def made(tmp_path_factory, cache) -> Path:
    """A folder with checkpoints, and with the tables of 3 calls of one."""
    folder = tmp_path_factory.mktemp("tune")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        checkpoint("m.ckpt")
        checkpoint("other.ckpt", seed=1)
        assert tune("--nfe=3", "--out=three.tables") == 0
    return folder


@pytest.fixture(autouse=True)
def inside(made, tmp_path, monkeypatch) -> None:
    for name in ("m.ckpt", "other.ckpt", "three.tables"):
        shutil.copy(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)


def tune(*options: str, ckpt_path: str = "m.ckpt") -> int:
    return main(["tune", f"--ckpt_path={ckpt_path}", *SMALL, *options])


def sample(*options: str, ckpt_path: str = "m.ckpt") -> int:
    return main(["sample", f"--ckpt_path={ckpt_path}", "--seeds=0-3", "--overwrite", *options])


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("NFE ")]


def test_from_a_checkpoint_to_images(capsys) -> None:
    tables = read_tables("three.tables")
    assert [*tables.tables] == [3]
    facts = tables.facts
    assert facts["network"] == weights_digest(load("m.ckpt").ema_denoiser.network)
    assert facts["guidance"] == {}
    assert facts["data"] == "44 training images of Pictures"
    learning = facts["learning"]["3"]
    assert learning["learned"]
    assert learning["after"] < learning["before"]
    assert learning["steps"] == 6
    scores = {(one["sampler"], one["measure"]): one["value"] for one in facts["scores"]}
    assert {name for name, _ in scores} == {
        "default", "noisy", "dpm++2m", "unipc2", "sde_dpm++2m", "deis", "ipndm", "learned"
    }  # fmt: skip
    assert {measure for _, measure in scores} == {"Frechet distance", "kernel distance", "energy distance"}
    assert all(one["images"] == 16 for one in facts["scores"])
    assert sorted(path.name for path in Path().iterdir()) == ["m.ckpt", "other.ckpt", "three.tables"]
    assert sample("--nfe=3", "--solver=three.tables", "--out=x.npz") == 0
    assert "warning" not in capsys.readouterr().out
    assert read_meta("x.npz")["checkpoints"]["solver"] == tables.digest(3)
    assert sample("--nfe=3", "--solver=three.tables", "--out=x.npz", ckpt_path="other.ckpt") == 0
    assert "was learned for another network" in capsys.readouterr().out


def test_scores_are_those_of_evaluate(capsys) -> None:
    how = ["--data=tiny.Pictures", "--features=classifier", "--seeds", "0-15", "--metrics=fid,kid", "--nfe=3"]
    solvers = "--solvers=default,unipc2,three.tables"
    assert main(["evaluate", "--ckpt_path=m.ckpt", "--out=cells", solvers, "--batch_size=200", *how]) == 0
    cells = [json.loads(line) for line in Path("cells/cells.jsonl").read_text().splitlines()]
    ours = {(s["sampler"], s["measure"]): s["value"] for s in read_tables("three.tables").facts["scores"]}
    for cell in cells:
        if cell["nfe"]:
            name = cell["sampler"].replace("three.tables", "learned")
            assert ours[name, "Frechet distance"] == pytest.approx(cell["scores"]["fid"], rel=1e-4)
            assert ours[name, "kernel distance"] == pytest.approx(cell["scores"]["kid"], rel=1e-4)


def test_the_same_command_goes_on_and_keeps_what_is_there(capsys) -> None:
    before = Path("three.tables").read_bytes()
    assert tune("--nfe=3", "--out=three.tables") == 0
    said = capsys.readouterr().out
    assert rows(said) == ["NFE 3: in three.tables already; to learn it otherwise, choose another --out"]
    assert "learned" in said
    assert Path("three.tables").read_bytes() == before
    assert tune("--nfe=2,3", "--out=three.tables") == 0
    assert [line[:7] for line in rows(capsys.readouterr().out)] == ["NFE 2: ", "NFE 3: "]
    both = read_tables("three.tables")
    assert [*both.tables] == [2, 3]
    assert both.digest(3) == SavedTables.of_plain(json.loads(before)).digest(3)
    assert {score["nfe"] for score in both.facts["scores"]} == {2, 3}


@pytest.mark.parametrize(
    ("ckpt_path", "options", "word"),
    [
        ("other.ckpt", [], "their network is"),
        ("m.ckpt", ["--eps_scale=1.005"], "their guidance is none, and here {'eps_scale': '1.005'}"),
        ("m.ckpt", ["--objective=kernel"], "their objective is energy distance in features and pixels"),
        ("m.ckpt", ["--stages=grid"], "their stages is ['drift', 'noise'], and here ['grid']"),
        ("m.ckpt", ["--precision=bf16"], "their precision is fp32"),
    ],
)
def test_tables_of_something_else_stay(capsys, ckpt_path, options, word) -> None:
    before = Path("three.tables").read_bytes()
    assert tune("--nfe=4", "--out=three.tables", *options, ckpt_path=ckpt_path) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1
    assert Path("three.tables").read_bytes() == before


def test_what_was_learned_before_a_kill_is_kept(monkeypatch, capsys) -> None:
    learn = command.__dict__["_learn"]

    def killed_at_three(nfe: int, *given: Any) -> str:
        if nfe == 3:
            raise RuntimeError("killed")
        return learn(nfe, *given)

    with monkeypatch.context() as patch:
        patch.setattr(command, "_learn", killed_at_three)
        with pytest.raises(RuntimeError, match="killed"):
            tune("--nfe=2,3", "--out=killed.tables")
    kept = read_tables("killed.tables")
    assert [*kept.tables] == [2]
    assert tune("--nfe=2,3", "--out=killed.tables") == 0
    assert "NFE 2: in killed.tables already" in capsys.readouterr().out
    done = read_tables("killed.tables")
    assert done.digest(2) == kept.digest(2)
    assert done.digest(3) == read_tables("three.tables").digest(3)


def test_a_kill_in_mid_learning_changes_nothing(monkeypatch) -> None:
    monkeypatch.setattr(command, "EVERY", 2)
    assert tune("--nfe=3", "--out=whole.tables") == 0
    step, starts = TableTuner.training_step, []

    def killed(self: TableTuner, *given: Any) -> torch.Tensor:
        starts.append(self.global_step)
        if len(starts) == 6:
            raise RuntimeError("killed")
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(TableTuner, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            tune("--nfe=3", "--out=cut.tables")
        assert len([*Path("cut.tables.run").iterdir()]) == 1
        assert tune("--nfe=3", "--out=cut.tables") == 0
    assert starts == [0, 1, 2, 3, 4, 5, 4, 5]
    assert not Path("cut.tables.run").exists()
    assert read_tables("cut.tables").digest(3) == read_tables("whole.tables").digest(3)


def test_where_nothing_is_better_the_default_stays(monkeypatch, capsys) -> None:
    def nothing_better(problem: Any, nfe: int, **how: Any) -> Tuned:
        scores = torch.ones(2)
        return Tuned(default(nfe).table(problem.denoiser, nfe), "default", scores, scores)

    monkeypatch.setattr("ersde_lit.tuning.tune", nothing_better)
    assert tune("--nfe=5", "--out=d.tables") == 0
    assert "nothing was better than default, whose own table is kept" in capsys.readouterr().out
    tables = read_tables("d.tables")
    assert tables == SavedTables({5: default(5).table(load("m.ckpt").ema_denoiser, 5)}, tables.facts)
    assert not tables.facts["learning"]["5"]["learned"]
    values = {(s["sampler"], s["measure"]): s["value"] for s in tables.facts["scores"]}
    for measure in ("Frechet distance", "kernel distance", "energy distance"):
        assert values["learned", measure] == values["default", measure]


def test_what_a_checkpoint_carries(capsys) -> None:
    assert tune("--nfe=3", "--out=three.tables", "--into=m2.ckpt") == 0
    assert load("m2.ckpt").tables == read_tables("three.tables")
    capsys.readouterr()
    assert sample("--nfe=3", "--out=carried.npz", ckpt_path="m2.ckpt") == 0
    assert "by the checkpoint's own table" in capsys.readouterr().out
    assert sample("--nfe=3", "--solver=three.tables", "--out=named.npz") == 0
    with np.load("carried.npz") as one, np.load("named.npz") as other:
        assert np.array_equal(one["arr_0"], other["arr_0"])
    assert tune("--nfe=2,3", "--out=three.tables", "--into=m2.ckpt") == 0  # its own earlier result
    assert load("m2.ckpt").tables == read_tables("three.tables")
    before = Path("other.ckpt").read_bytes()
    assert tune("--nfe=3", "--out=three.tables", "--into=other.ckpt") == 2
    assert "--into other.ckpt exists, and is no copy of m.ckpt" in capsys.readouterr().err
    assert Path("other.ckpt").read_bytes() == before


def test_guidance_is_kept_with_the_tables(capsys) -> None:
    assert tune("--nfe=2", "--out=g.tables", "--eps_scale=1.005", "--stages=drift") == 0
    tables = read_tables("g.tables")
    assert tables.facts["guidance"] == {"eps_scale": "1.005"}
    assert not tables.tables[2].b.any()
    capsys.readouterr()
    assert sample("--nfe=2", "--solver=g.tables", "--eps_scale=1.005", "--out=x.npz") == 0
    assert "warning" not in capsys.readouterr().out
    assert sample("--nfe=2", "--solver=g.tables", "--out=x.npz") == 0
    assert "was learned with eps_scale 1.005, and here is no guidance" in capsys.readouterr().out


def test_of_a_model_of_discrete_levels_it_samples(capsys) -> None:
    checkpoint("vp.ckpt", 0, VP(steps=1000), "vp", "eps")
    assert tune("--nfe=3", "--out=vp.tables", "--stages=grid,drift,noise", ckpt_path="vp.ckpt") == 0
    levels = load("vp.ckpt").ema_denoiser.levels
    for lam in read_tables("vp.tables").tables[3].lams[:-1]:
        assert torch.isclose(levels, lam, rtol=1e-9, atol=0).any()
    assert sample("--nfe=3", "--solver=vp.tables", "--out=x.npz", ckpt_path="vp.ckpt") == 0


def test_without_gradients() -> None:
    pytest.importorskip("cmaes")
    assert tune("--nfe=2", "--out=e.tables", "--gradient_free", "--steps=16") == 0
    tables = read_tables("e.tables")
    assert tables.facts["objective"] == "energy distance in features and pixels, without gradients"
    assert tables.facts["learning"]["2"]["after"] <= tables.facts["learning"]["2"]["before"]


def test_a_kill_without_gradients_changes_nothing(monkeypatch) -> None:
    pytest.importorskip("cmaes")
    how = ["--nfe=3", "--gradient_free", "--steps=40", "--stages=drift"]
    assert tune(*how, "--out=whole.tables") == 0
    scores, made = Problem.scores, list[int]()

    def killed(*given: Any) -> torch.Tensor:
        made.append(len(made))
        if len(made) == 25:
            raise RuntimeError("killed")
        return scores(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Problem, "scores", killed)
        with pytest.raises(RuntimeError, match="killed"):
            tune(*how, "--out=cut.tables")
        (record,) = Path("cut.tables.run").iterdir()
        kept = record.read_text()
        record.write_text(kept[:-1])
        assert tune(*how, "--out=cut.tables") == 2
        record.write_text(kept)
        before = len(made)
        assert tune(*how, "--out=cut.tables") == 0
    assert len(made) - before < 40
    assert not Path("cut.tables.run").exists()
    assert read_tables("cut.tables").digest(3) == read_tables("whole.tables").digest(3)


def test_networks_may_be_in_half_precision() -> None:
    for precision in ("fp32", "bf16"):
        assert tune("--nfe=2", f"--out={precision}.tables", f"--precision={precision}", "--stages=drift") == 0
    assert read_tables("bf16.tables").facts["learning"]["2"]["steps"] > 0
    assert read_tables("bf16.tables").digest(2) != read_tables("fp32.tables").digest(2)


def test_earlier_tables_are_a_start(capsys) -> None:
    assert tune("--nfe=3", "--out=again.tables", "--like=three.tables", "--stages=grid") == 0
    first, again = read_tables("three.tables"), read_tables("again.tables")
    assert again.facts["learning"]["3"]["start"] == "like"
    assert again.facts["learning"]["3"]["like"] == first.digest(3) == again.digest(3)


def test_time_ends_learning_and_what_was_learned_counts(monkeypatch) -> None:
    monkeypatch.setattr(command, "EVERY", 10**6)
    assert tune("--nfe=2", "--out=t.tables", "--steps=100000", "--minutes=0.02") == 0
    tables = read_tables("t.tables")
    assert 0 < tables.facts["learning"]["2"]["steps"] < 100000
    assert tables.tables[2].calls is not None  # no start's


def test_real_images_may_be_a_reference(capsys) -> None:
    assert main(["reference", "--data=tiny.Pictures", "--features=efficientnet", "--out=bare.npz"]) == 0
    how = ["--nfe=2", "--features=efficientnet", "--reference=bare.npz", "--steps=1", "--stopping=8", "--stages=grid"]
    given = [option for option in SMALL if not option.startswith(("--data", "--steps", "--stopping"))]
    assert main(["tune", "--ckpt_path=m.ckpt", "--out=r.tables", *given, *how]) == 2
    error = capsys.readouterr().err
    assert "--reference bare.npz has statistics alone, and learning needs features" in error
    assert error.count("\n") == 1
    Path("bare.npz").unlink()
    kept, few = ["--features=efficientnet", "--keep_features=44", "--out=bare.npz"], "--images=2"
    assert main(["reference", "--data=tiny.Pictures", *kept]) == 0
    assert main(["tune", "--ckpt_path=m.ckpt", "--out=r.tables", *given, *how, few]) == 0
    assert {s["measure"] for s in read_tables("r.tables").facts["scores"]} == {"Frechet distance", "kernel distance"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out=x.npz"], "--out x.npz: the file is a .tables, name it so"),
        (["--out=absent/x.tables"], "there is no folder"),
        (["--out=bad.tables"], "bad.tables is damaged"),
        (["--nfe=0"], "--nfe 0"),
        (["--stages=colour"], "--stages colour: choose some of grid,drift,noise"),
        (["--features=inception"], "Inception gives no gradients"),
        (["--precision=fp16"], "choose bf16"),
        (["--into=x.npz"], "--into x.npz: the file is a .ckpt"),
        (["--into=vp.ckpt"], "--into vp.ckpt is also --ckpt_path"),
        (["--into=m.ckpt"], "--into m.ckpt exists, and is no copy of vp.ckpt"),
        (["--like=absent.tables"], "nothing at --like absent.tables"),
        (["--like=far.tables"], "--like far.tables: the table of 3 calls"),
        (["--decoder=."], "--decoder is for models of latents"),
        (["--data=ersde_lit.data.Digits"], "the data's images are (1, 8, 8), the model's (1, 4, 4)"),
        (["--labels=7"], "--labels 7: real images are of all classes"),
        (["--batch_size=1"], "--batch_size 1: distances need at least two images"),
        (["--stopping=1"], "--stopping 1: distances need at least two images"),
        (["--gradient_free", "--minutes=1"], "leave --minutes out"),
        (["--out=lists.tables"], "--out lists.tables is no file that `tune` wrote"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, options, message) -> None:
    Path("bad.tables").write_text("{")
    write_tables("lists.tables", SavedTables({3: UniPC().tableau(grids.edm(3))}, {"learning": [1]}))
    write_tables("far.tables", SavedTables({3: UniPC().tableau(grids.edm(3, lam_max=1e6))}))
    checkpoint("vp.ckpt", 0, VP(), "vp", "eps")
    assert tune("--nfe=3", "--out=refused.tables", *options, ckpt_path="vp.ckpt") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("refused.tables").exists()
    assert Path("bad.tables").read_text() == "{"


@pytest.mark.parametrize("labels", ["random", "none"])
def test_labels_that_the_model_has_not_are_refused_before_it_learns(capsys, labels: str) -> None:
    checkpoint("plain.ckpt", num_classes=0)
    assert tune("--nfe=2", "--out=plain.tables", f"--labels={labels}", ckpt_path="plain.ckpt") == 2
    assert "the model is unconditional; leave --labels out" in capsys.readouterr().err
    assert not Path("plain.tables").exists()


class Opaque(Features):
    """Means and deviations of colours, without gradients."""

    num_features = 2

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images.float().mean((2, 3)), images.float().std((2, 3))], dim=1)


def test_features_without_gradients_are_refused_or_need_none(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "of_a_user", sys.modules[__name__])
    assert tune("--nfe=2", "--out=o.tables", "--features=of_a_user.Opaque") == 2
    assert "--features give no gradients" in capsys.readouterr().err
    assert tune("--nfe=2", "--out=o.tables", "--features=of_a_user.Opaque", "--gradient_free", "--steps=8") == 0


def test_stages_have_one_place() -> None:
    assert of_options.STAGES is STAGES
    assert tuple(FREEDOMS_OF) == STAGES


@pytest.mark.slow
def test_learned_digits_are_better_than_those_of_the_default(capsys) -> None:
    quick = ["--trainer.max_epochs=16", "--trainer.callbacks=null", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--config", str(CONFIGS / "digits.yaml"), *quick]) == 0
    last = "--ckpt_path=runs/digits/checkpoints/last.ckpt"
    data = ["--data=ersde_lit.data.Digits", "--nfe=5"]
    learning = ["--steps=50", "--batch_size=100", "--stopping=1000", "--images=500"]
    assert main(["tune", last, *data, "--out=x.tables", *learning]) == 0
    fresh = ["--features=classifier", "--seeds", "10000-11499", "--solvers=default,x.tables", "--out=cells"]
    assert main(["evaluate", last, *data, *fresh]) == 0
    cells = map(json.loads, Path("cells/cells.jsonl").read_text().splitlines())
    fid = {cell["sampler"]: cell["scores"]["fid"] for cell in cells}
    assert fid["x.tables"] < 0.9 * fid["default"]


def test_two_ranks_write_one_file() -> None:
    arguments = ["tune", "--ckpt_path=m.ckpt", *SMALL, "--nfe=2,3", "--out=two.tables", "--devices=2"]
    done = run_on_ranks("ranks.py", "command", arguments)
    assert done.codes == [0, 0], done.said
    assert "tables  two.tables" in done.said[0]
    assert "NFE" not in done.said[1]
    tables = read_tables("two.tables")
    assert [*tables.tables] == [2, 3]
    one = {(s["sampler"], s["measure"]): s["value"] for s in read_tables("three.tables").facts["scores"]}
    for score in tables.facts["scores"]:  # of the same seeds, shared by the ranks
        if (score["nfe"], score["sampler"]) == (3, "default"):
            assert score["value"] == pytest.approx(one["default", score["measure"]], rel=1e-4)
    assert not Path("two.tables.run").exists()
