"""Files of tables in the commands: `sample`, `evaluate`, `analyze`, `export`, and checkpoints that carry them."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ersde_lit.cli import main
from ersde_lit.sampling.formats import read_meta
from ersde_lit.solvers import DEIS, ERSDE, SavedTables, Solver, UniPC, default, grids, read_tables, write_tables
from ersde_lit.solvers.oracles import Gaussian, w2_error
from ersde_lit.training import load, weights_digest
from ersde_lit.training.averaged import SPEC_KEY

LAST = "runs/digits/checkpoints/last.ckpt"
TAUGHT = ERSDE(2, "sde", corrector=2)
GUIDED = [f"--guide={LAST}", "--guide_scale=1.5"]


@pytest.fixture
def inside(workplace, tmp_path, monkeypatch) -> None:
    """An empty folder beside the finished run."""
    (tmp_path / "runs").symlink_to(workplace / "runs")
    monkeypatch.chdir(tmp_path)


def sample(*options: str, ckpt_path: str = LAST) -> int:
    return main(["sample", f"--ckpt_path={ckpt_path}", "--seeds=0-3", "--overwrite", *options])


def evaluate(*options: str, ckpt_path: str = LAST) -> int:
    how = ["--data=ersde_lit.data.Digits", "--features=classifier", "--seeds", "0-9", "--batch_size=10"]
    return main(["evaluate", f"--ckpt_path={ckpt_path}", *how, *options])


def images(path: str) -> np.ndarray:
    with np.load(path) as file:
        return file["arr_0"]


def saved(path: str, solver: Solver = TAUGHT, nfes: tuple[int, ...] = (4, 5), **facts: Any) -> str:
    write_tables(path, SavedTables({n: solver.tableau(grids.edm(n)) for n in nfes}, facts))
    return path


def network_of(path: str = LAST) -> str:
    return weights_digest(load(path).ema_denoiser.network)


class TestSample:
    @pytest.mark.parametrize(
        ("solver", "options"),
        [
            (TAUGHT, ("--solver=er_sde:order=2:noise_scale=sde:corrector=2",)),
            (UniPC(3), ("--solver=unipc3",)),
            (DEIS(), ("--solver=deis",)),
        ],
        ids=str,
    )
    def test_of_a_solver_it_makes_its_images(self, inside, solver, options) -> None:
        saved("of.tables", solver)
        for nfe in (4, 5):
            assert sample(f"--nfe={nfe}", "--out=one.npz", "--solver=of.tables") == 0
            assert sample(f"--nfe={nfe}", "--out=other.npz", *options) == 0
            assert np.array_equal(images("one.npz"), images("other.npz"))

    def test_the_content_is_what_counts(self, inside, capsys) -> None:
        saved("a.tables")
        assert sample("--nfe=4", "--out=content.npz", "--solver=a.tables") == 0
        meta = read_meta("content.npz")
        assert meta["checkpoints"]["solver"] == read_tables("a.tables").digest(4)
        assert meta["paths"]["solver"] == "a.tables"
        assert meta["options"]["nfe"] == 4
        assert not {"solver", "grid"} & meta["options"].keys()
        again = ["sample", f"--ckpt_path={LAST}", "--seeds=0-3", "--nfe=4", "--out=content.npz"]
        # Another name, other facts, another table beside it: the same images.
        saved("moved.tables", nfes=(4, 9), scores=[1, 2])
        capsys.readouterr()
        assert main([*again, "--solver=moved.tables"]) == 0
        assert "nothing to do" in capsys.readouterr().out
        # Another table under the same name: others.
        saved("a.tables", UniPC())
        assert main([*again, "--solver=a.tables"]) == 2
        assert "exists and differs in solver (another file)" in capsys.readouterr().err

    def test_like(self, inside, capsys) -> None:
        saved("l.tables")
        assert sample("--nfe=5", "--out=first.npz", "--solver=l.tables") == 0

        def like(*options: str) -> int:
            return main(["sample", "--like=first.npz", "--seeds=2", "--out=of_like.npz", "--overwrite", *options])

        assert like() == 0
        assert np.abs(images("of_like.npz").astype(int) - images("first.npz")[2:3]).max() <= 1
        assert like("--nfe=4") == 0
        assert like("--solver=ddim") == 0
        assert read_meta("of_like.npz")["options"]["solver"] == "ddim"
        assert "solver" not in read_meta("of_like.npz")["paths"]
        assert sample("--nfe=5", "--out=first.npz", "--solver=ddim", "--grid=edm:rho=5") == 0
        assert like("--solver=l.tables") == 0
        assert sample("--nfe=5", "--out=first.npz", "--solver=l.tables") == 0
        saved("other.tables", UniPC())
        assert like("--solver=other.tables") == 0
        saved("l.tables", UniPC())
        capsys.readouterr()
        assert like() == 2
        assert "l.tables is not the file that first.npz was made with" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--nfe=7"], "there is no table of 7 calls, only of 4, 5"),
            (["--nfe=4", "--grid=edm"], "has rows and noise levels of its own: leave --grid out"),
            (["--nfe=4", "--order=2"], "leave --order out"),
            (["--nfe=4", "--sigma_max=40"], "leave --sigma_max out"),
            (["--preset=fast"], "--preset fast sets all options"),
            (["--solver=x.tables:order=2", "--nfe=4"], "--solver x.tables:order=2: choose from"),
            (["--solver=absent.tables", "--nfe=4"], "nothing at --solver absent.tables"),
            (["--solver=bad.tables", "--nfe=4"], "bad.tables is damaged, truncated"),
            (["--solver=carried", "--nfe=4"], "the checkpoint carries no tables"),
            (["--out=x.tables", "--nfe=4"], "--out"),
        ],
    )
    def test_what_cannot_be_is_refused_in_one_line(self, inside, capsys, options, message) -> None:
        saved("x.tables")
        Path("bad.tables").write_text("{")
        given = ["--out=refused.npz", "--solver=x.tables", *options]
        assert sample(*given) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not Path("refused.npz").exists()

    def test_a_model_that_has_not_the_levels_is_refused(self, inside, capsys) -> None:
        from tiny import network

        from ersde_lit.denoisers import VP
        from ersde_lit.training import DiffusionModule

        module = DiffusionModule(network(), VP(), "vp", "eps")
        torch.save({"state_dict": module.state_dict(), SPEC_KEY: module.spec}, "vp.ckpt")
        saved("x.tables")
        assert sample("--nfe=4", "--out=refused.npz", "--solver=x.tables", ckpt_path="vp.ckpt") == 2
        error = capsys.readouterr().err
        assert "--solver x.tables: the table of 4 calls is for its own noise levels alone" in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize(
        ("facts", "options", "warning"),
        [
            ({}, [], None),
            ({"network": "here"}, [], None),
            ({"network": "here", "guidance": {}}, [], None),
            ({"network": "0123456789abcdef"}, [], "f.tables was learned for another network (digest 0123456789abcdef"),
            ({"guidance": {"cfg_scale": 2.0}}, [], "was learned with cfg_scale 2.0, and here is no guidance"),
            ({"guidance": {"eps_scale": "1.005"}}, ["--eps_scale=1.005"], None),
            ({"guidance": None}, ["--eps_scale=1.005"], "with no guidance, and here is eps_scale 1.005"),
            ({"guidance": ["x"], "network": [1]}, [], "another network (digest [1]"),
            ({"labels": "random"}, [], None),
            ({"labels": "random"}, ["--labels=3"], None),
            ({"labels": "none"}, [], "was learned without labels, and here it samples with them"),
            ({"files": {"guide": "0123"}}, GUIDED, "was learned with another --guide"),
            ({"guidance": {"guide_scale": 1.5}, "files": {}}, GUIDED, "was learned with another --guide, or without"),
            ({"guidance": {"guide_scale": 1.5}, "files": "0123"}, GUIDED, None),
        ],
    )
    def test_what_it_was_learned_for_is_compared(self, inside, capsys, facts, options, warning) -> None:
        if facts.get("network") == "here":
            facts = {**facts, "network": network_of()}
        saved("f.tables", **facts)
        assert sample("--nfe=4", "--out=warned.npz", "--solver=f.tables", *options) == 0
        said = capsys.readouterr().out
        assert ("warning: " in said) == (warning is not None)
        assert (warning or "") in said


class TestEvaluate:
    def test_cells_know_the_table_by_its_content(self, inside, capsys) -> None:
        saved("e.tables", network="0123456789abcdef")
        in_yaml = {"mine": {"class_path": "ersde_lit.solvers.learned", "init_args": {"path": "e.tables"}}}
        Path("e.yaml").write_text(yaml.safe_dump({"samplers": in_yaml}))
        solver = "er_sde:order=2:noise_scale=sde:corrector=2"
        command = ("--nfe=4,5", f"--solvers={solver},e.tables", "--config=e.yaml", "--out=of_tables")
        assert evaluate(*command) == 0
        warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
        assert [line.split()[1] for line in warnings] == ["e.tables", "mine"]
        cells = [json.loads(line) for line in Path("of_tables/cells.jsonl").read_text().splitlines()]
        scores = {(cell["sampler"], cell["nfe"]): cell["scores"]["fid"] for cell in cells if cell["nfe"]}
        for nfe in (4, 5):
            assert scores[solver, nfe] == scores["e.tables", nfe] == scores["mine", nfe]
        assert evaluate(*command) == 0
        saved("e.tables", UniPC())
        capsys.readouterr()
        for given in (["--solvers=e.tables"], ["--config=e.yaml"]):
            assert evaluate("--nfe=4", *given, "--out=of_tables") == 2
            assert "was measured on other images" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ["--nfe=4,7", "--solvers=x.tables"],
                "sampler x.tables, NFE 7: --solver x.tables: there is no table of 7 calls, only of 4, 5",
            ),
            (["--nfe=4", "--solvers=x.tables", "--grids=edm,log_uniform"], "leave --grid out"),
            (["--nfe=4", "--solvers=default,absent.tables"], "there is nothing at absent.tables"),
        ],
    )
    def test_what_cannot_be_is_refused_in_one_line(self, inside, capsys, options, message) -> None:
        saved("x.tables")
        assert evaluate(*options, "--out=refused") == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


class TestAnalyze:
    FEW = ("--seeds=0-3", "--substeps=2", "--nfe=5", "--noise_scales=ode")

    def test_the_mean_is_not_added_to_starts_that_have_it(self, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        sampler = default(5)
        write_tables("x.tables", SavedTables({5: sampler.table(Gaussian.spectrum(), 5)}))
        assert sampler.add_mean
        assert main(["analyze", "--out=a", "--solvers=x.tables,default", *self.FEW]) == 0
        values: dict[tuple[str, str], dict[str, float]] = {}
        with Path("a/analysis.csv").open() as file:
            for row in csv.DictReader(file):
                values.setdefault((row["quantity"], row["step"]), {})[row["curve"]] = float(row["value"] or "nan")
        errors = {key: found for key, found in values.items() if key[0] in ("w2", "one_step_w2", "rms")}
        assert len(errors) >= 10
        for found in errors.values():
            assert found["x.tables"] == pytest.approx(found["default"], rel=1e-6, abs=1e-9, nan_ok=True)

    def test_all_run_at_the_levels_of_the_table(self, tmp_path, monkeypatch, capsys) -> None:
        monkeypatch.chdir(tmp_path)
        lams = grids.edm(5, lam_max=20.0, rho=5.0)
        write_tables("x.tables", SavedTables({5: UniPC().tableau(lams)}))
        assert main(["analyze", "--out=a", "--solvers=x.tables,deis", *self.FEW]) == 0
        with Path("a/analysis.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["quantity"] == "w2"]
        ends = {row["curve"]: float(row["value"]) for row in rows if row["step"] == "4"}
        for name, solver in (("x.tables", UniPC()), ("deis", DEIS())):
            assert ends[name] == pytest.approx(w2_error(Gaussian.spectrum(), solver.tableau(lams)), rel=1e-6)
        assert "x.tables's own grid, λ 20 to 0.002" in Path("a/analysis.md").read_text()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--solvers=x.tables", "--grid=edm"], "leave --grid out"),
            (["--solvers=x.tables", "--rho=5"], "leave --rho out"),
            (["--solvers=x.tables", "--nfe=6"], "only of 4, 5"),
            (["--solvers=x.tables,y.tables"], "x.tables and y.tables have different noise levels"),
            (["--solvers=carried"], "carries no tables"),
        ],
    )
    def test_what_cannot_be_is_refused_in_one_line(self, tmp_path, monkeypatch, capsys, options, message) -> None:
        monkeypatch.chdir(tmp_path)
        saved("x.tables")
        write_tables("y.tables", SavedTables({5: UniPC().tableau(grids.log_uniform(5))}))
        assert main(["analyze", "--out=a", *self.FEW, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


class TestCarried:
    @pytest.fixture(autouse=True)
    def carrying(self, inside) -> None:
        saved("c.tables", network=network_of())
        assert main(["export", LAST, "--tables=c.tables", "--out=c.ckpt"]) == 0

    def test_it_is_the_default_where_there_is_one(self, capsys) -> None:
        assert load("c.ckpt").tables == read_tables("c.tables")
        capsys.readouterr()
        expected = {
            "--nfe=4": ("--solver=c.tables", "NFE 4 by the checkpoint's own table: "),
            "--nfe=6": ("--solver=default", "NFE 6 (the checkpoint carries tables of 4, 5 calls): "),
        }
        for nfe, (solver, said) in expected.items():
            assert sample(nfe, "--out=carried.npz", ckpt_path="c.ckpt") == 0
            output = capsys.readouterr().out
            assert said in output
            assert "warning" not in output
            assert sample(nfe, "--out=named.npz", solver) == 0
            assert np.array_equal(images("carried.npz"), images("named.npz"))
        assert sample("--nfe=4", "--solver=default", "--out=plain.npz", ckpt_path="c.ckpt") == 0
        assert sample("--nfe=4", "--out=carried.npz", ckpt_path="c.ckpt") == 0
        assert not np.array_equal(images("plain.npz"), images("carried.npz"))
        assert read_meta("carried.npz")["options"]["solver"] == "carried"
        assert main(["sample", "--like=carried.npz", "--seeds=0-3", "--out=again.npz", "--overwrite"]) == 0
        assert np.array_equal(images("again.npz"), images("carried.npz"))
        assert sample("--nfe=4", "--order=1", "--out=order.npz", ckpt_path="c.ckpt") == 0
        assert read_meta("order.npz")["options"]["solver"] == "er_sde"
        assert sample("--nfe=6", "--solver=carried", "--out=x.npz", ckpt_path="c.ckpt") == 2
        assert "--solver carried: there is no table of 6 calls, only of 4, 5" in capsys.readouterr().err

    def test_evaluate_measures_it(self, capsys) -> None:
        capsys.readouterr()
        assert evaluate("--nfe=4,6", "--out=carried_cells", ckpt_path="c.ckpt") == 0
        said = capsys.readouterr().out
        assert "default, NFE 4: the checkpoint's own table" in said
        assert "default, NFE 6: the checkpoint's" not in said
        assert "Default, NFE 4: the checkpoint's own table." in Path("carried_cells/results.md").read_text()
        assert evaluate("--nfe=4", "--out=named_cells", "--solvers=c.tables") == 0
        scores = []
        for out in ("carried_cells", "named_cells"):
            cells = map(json.loads, Path(out, "cells.jsonl").read_text().splitlines())
            scores.append(next(cell["scores"]["fid"] for cell in cells if cell["nfe"] == 4))
        assert scores[0] == scores[1]

    @pytest.mark.parametrize("out", ["x.ckpt", "x.safetensors"])
    def test_of_another_network_is_said(self, capsys, out) -> None:
        capsys.readouterr()
        assert main(["export", LAST, "--tables=c.tables", f"--out={out}"]) == 0
        assert "warning" not in capsys.readouterr().out
        Path(out).unlink()
        for facts, said in (({"network": "0123456789abcdef"}, 1), ({}, 0)):
            saved("o.tables", **facts)
            assert main(["export", LAST, "--tables=o.tables", f"--out={out}"]) == 0
            lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
            here = f"(digest 0123456789abcdef; here {network_of()})"
            assert lines == [f"warning: o.tables was learned for another network {here}"] * said
            Path(out).unlink()

    def test_a_network_of_other_classes_is_not_imported_to_compare(self, capsys) -> None:
        content = torch.load(LAST, weights_only=True)
        content[SPEC_KEY]["network"]["class_path"] = "absent.Network"
        torch.save(content, "foreign.ckpt")
        assert main(["export", "foreign.ckpt", "--tables=c.tables", "--out=x.ckpt"]) == 0
        assert "warning" not in capsys.readouterr().out
        assert Path("x.ckpt").is_file()

    def test_it_is_kept_when_exported_and_imported(self) -> None:
        assert main(["export", "c.ckpt", "--out=c.safetensors"]) == 0
        assert main(["export", LAST, "--tables=c.tables", "--out=direct.safetensors", "--averaged_only"]) == 0
        for source in ("c.safetensors", "direct.safetensors"):
            Path("back.ckpt").unlink(missing_ok=True)
            assert main(["import", source, "--out=back.ckpt"]) == 0
            assert load("back.ckpt").tables == read_tables("c.tables")
            assert network_of("back.ckpt") == network_of()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--out=new.ckpt"], "name it so"),
            (["--out=new.ckpt", "--tables=c.tables", "--averaged_only"], "leave --averaged_only out"),
            (["--out=new.ckpt", "--tables=absent.tables"], "nothing at --tables absent.tables"),
            (["--out=c.ckpt", "--tables=c.tables"], "--out c.ckpt exists"),
        ],
    )
    def test_what_cannot_be_is_refused_in_one_line(self, capsys, options, message) -> None:
        assert main(["export", LAST, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not Path("new.ckpt").exists()
