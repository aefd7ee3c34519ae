import json
import os
import pickle
import random
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import network

from ersde_lit.cli import COMMANDS, main
from ersde_lit.cli.options.guidance import GuidanceOptions
from ersde_lit.cli.options.sampler import (
    OF_GRID,
    OF_SOLVER,
    PRESETS,
    SamplerOptions,
    as_options,
)  # fmt: skip
from ersde_lit.denoisers import VE
from ersde_lit.names import GRIDS, MAX_STEPS, SAMPLERS, SOLVERS
from ersde_lit.networks import ClassifierEncoder, UNet
from ersde_lit.sampling.formats import read_meta
from ersde_lit.solvers import ERSDE, SavedTables, SeededNoise, TableSampler, default, grids, noisy, registry
from ersde_lit.training import DiffusionModule
from ersde_lit.training.averaged import SPEC_KEY
from ersde_lit.training.noisy_classifier import KIND, NoisyClassifier

LAST = "runs/digits/checkpoints/last.ckpt"


def sample(*options: str, ckpt_path: str = LAST) -> int:
    return main(["sample", f"--ckpt_path={ckpt_path}", *options])


def images(path) -> np.ndarray:
    with np.load(path) as file:
        return file["arr_0"].astype(int)


def digits_network(**changes) -> UNet:
    return network(**{"image_shape": (1, 8, 8), "num_classes": 10, **changes})


def save(module: DiffusionModule, path: str, **changes) -> None:
    """A checkpoint with what `sample` reads of one."""
    with torch.no_grad():
        for weight in module.parameters():  # no longer zero where it was
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    torch.save({"state_dict": module.state_dict(), SPEC_KEY: {**module.spec, **changes}}, path)


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    mounted = (
        not os.geteuid() and not subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]).returncode
    )
    if not mounted:
        pytest.skip("only root can mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


class TestImages:
    def test_npz_holds_images_and_labels_drawn_from_the_seeds(self, inside) -> None:
        assert sample("--seeds=0-29", "--nfe=3", "--out=a.npz") == 0
        with np.load("a.npz") as file:
            assert file["arr_0"].shape == (30, 8, 8, 1)
            assert file["arr_0"].dtype == np.uint8
            assert len(set(file["arr_1"].tolist())) > 5

    def test_they_depend_on_their_seed_alone(self, inside) -> None:
        assert sample("--seeds=0-9", "--nfe=4", "--out=ten.npz", "--batch_size=10") == 0
        assert sample("--seeds=0-9", "--nfe=4", "--out=in_threes.npz", "--batch_size=3") == 0
        assert sample("--seeds=3-5", "--nfe=4", "--out=three.npz") == 0
        ten = images("ten.npz")
        assert np.abs(images("in_threes.npz") - ten).max() <= 1
        assert np.abs(images("three.npz") - ten[3:6]).max() <= 1
        assert np.abs(ten[3] - ten[4]).max() > 1

    def test_the_same_command_gives_the_same_bytes(self, inside) -> None:
        for out in ("once.npz", "twice.npz"):
            assert sample("--seeds=0-9", "--nfe=4", f"--out={out}", "--solver=heun") == 0
        assert Path("once.npz").read_bytes() == Path("twice.npz").read_bytes()
        meta = read_meta("once.npz")
        assert (meta["options"]["nfe"], meta["options"]["solver"], meta["seeds"]) == (3, "heun", "0-9")

    def test_every_format_holds_the_same_images(self, inside) -> None:
        for out in ("same.npz", "same.zip", "same.png", "same", "deep"):
            layout = {"deep": ["--subdirs"], "same.png": ["--columns=1"]}.get(out, [])
            assert sample("--seeds=7,2009", "--nfe=3", f"--out={out}", "--labels=all", *layout) == 0
        arrays = images("same.npz")[..., 0]
        assert {p.name for p in Path("same").iterdir()} == {"000007.png", "002009.png", "dataset.json", "meta.json"}
        with zipfile.ZipFile("same.zip") as file:
            zipped = [Image.open(file.open(f"{n}.png")) for n in ("00000/img00000007", "00002/img00002009")]
        deep = [Image.open(f"deep/{name}.png") for name in ("000000/000007", "002000/002009")]
        flat = [Image.open(f"same/{name}.png") for name in ("000007", "002009")]
        for files in (zipped, deep, flat):
            assert np.array_equal(np.stack([np.asarray(file) for file in files]), arrays)
        picture = np.asarray(Image.open("same.png"))
        assert np.array_equal(np.stack([picture[1:33:4, 1:33:4], picture[35:67:4, 1:33:4]]), arrays)
        assert json.loads(Path("same/dataset.json").read_text())["labels"] == [["000007.png", 7], ["002009.png", 9]]

    def test_trajectory_and_preview(self, inside) -> None:
        views = ("--trajectory=how.png", "--preview=now.png")
        assert sample("--seeds=0-9", "--nfe=5", "--out=seen.npz", *views) == 0
        assert Image.open("how.png").size == (5 * 34, 8 * 34)
        assert Image.open("now.png").size == (4 * 34, 3 * 34)
        seen = Path("how.png").read_bytes()
        assert sample("--seeds=10-11", "--nfe=5", "--out=others.npz", "--trajectory=how.png") == 0
        assert Path("how.png").read_bytes() != seen
        assert sample("--seeds=0-9", "--nfe=5", "--out=seen.npz", *views) == 0  # finished, but for the picture
        assert Path("how.png").read_bytes() == seen
        assert sample("--seeds=0-9", "--nfe=5", "--out=unseen.npz") == 0
        assert Path("seen.npz").read_bytes() == Path("unseen.npz").read_bytes()


class TestChoices:
    @pytest.mark.parametrize("solver", [*SAMPLERS, *SOLVERS])
    def test_every_solver_samples(self, inside, solver: str) -> None:
        assert sample("--seeds=0-1", "--nfe=5", f"--out={solver}.npz", f"--solver={solver}") == 0

    @pytest.mark.parametrize("grid", ["uniform_t", *GRIDS])
    def test_every_grid_samples(self, inside, grid: str) -> None:
        assert sample("--seeds=0-1", "--nfe=5", f"--out=grid_{grid}.npz", f"--grid={grid}") == 0

    def test_options_of_er_sde_are_used(self, inside) -> None:
        two = ("--seeds=0-1", "--nfe=6")
        assert sample(*two, "--out=o1.npz", "--order=1", "--noise_scale=ode") == 0
        assert sample(*two, "--out=o2.npz", "--solver=ddim") == 0
        assert sample(*two, "--out=o3.npz", "--order=2", "--noise_scale=sde", "--corrector=2") == 0
        assert np.abs(images("o1.npz") - images("o2.npz")).max() <= 1
        assert np.abs(images("o1.npz") - images("o3.npz")).max() > 1

    @pytest.mark.parametrize("nfe", [*range(1, 61), 100, 250, 1000])
    def test_the_default_is_recorded_in_full(self, nfe: int) -> None:
        """So that it can be made again when `default` has become another."""
        made, named = SamplerOptions(nfe=nfe).sampler(VE())
        assert named == {"nfe": nfe, **as_options(default(nfe))}
        assert isinstance(made, TableSampler)
        assert made.solver == default(nfe).solver
        assert torch.equal(made.grid(nfe), default(nfe).grid(nfe))
        again, same = SamplerOptions(**named).sampler(VE())
        assert (again.solver, same) == (made.solver, named)
        assert torch.equal(again.grid(nfe), made.grid(nfe))

    def test_each_option_reaches_its_solver_or_grid(self) -> None:
        options = {"order": 2, "noise_scale": "sde", "corrector": 2, "nodes": 0.3, "relative": True}
        made, named = SamplerOptions(nfe=9, sigma_min=0.01, sigma_max=40.0, rho=5.0, **options).sampler(VE())
        assert made == TableSampler(registry.solver("er_sde", **options), made.grid)
        assert torch.equal(made.grid(9), registry.grid("edm", lam_min=0.01, lam_max=40.0, rho=5.0)(9))
        assert named == {
            "nfe": 9,
            "solver": "er_sde",
            **options,
            "grid": "edm",
            "rho": 5,
            "sigma_min": 0.01,
            "sigma_max": 40,
        }
        assert SamplerOptions(paper=True).sampler(VE())[0].solver == registry.solver("er_sde", paper=True)
        assert SamplerOptions(solver="ddim", eta=0.5).sampler(VE())[0].solver.eta == 0.5
        assert SamplerOptions(solver="heun", churn=40.0).sampler(VE())[0].churn == 40

    @pytest.mark.parametrize(("preset", "nfe"), PRESETS.items())
    def test_presets_are_the_default_at_their_nfe_but_for_noisy(self, preset, nfe) -> None:
        expected = as_options(noisy(nfe) if preset == "noisy" else default(nfe))
        carried = SavedTables({nfe: ERSDE().tableau(grids.edm(nfe))})
        for tables in (None, carried):  # those of a checkpoint are not what a preset names
            assert SamplerOptions(preset=preset).sampler(VE(), tables)[1] == {"nfe": nfe, **expected}
        assert f"{nfe}" in (SamplerOptions.__doc__ or "")

    def test_there_is_noise_for_as_many_calls_as_are_taken(self) -> None:
        noise = SeededNoise([0], (1,))
        noise.step(MAX_STEPS - 1)
        with pytest.raises(ValueError, match="a step is a number from 0"):
            noise.step(MAX_STEPS)

    @pytest.mark.parametrize("scale", ["power:1.5", "eta:er_sde_5:0.5", "window:1:0.05:2:0.25"])
    def test_noise_scales_with_arguments(self, inside, scale) -> None:
        out = f"{scale.partition(':')[0]}.npz"
        assert sample("--seeds=0-1", "--nfe=4", "--order=2", f"--noise_scale={scale}", f"--out={out}") == 0
        assert read_meta(out)["options"]["noise_scale"] == scale
        if scale == "power:1.5":
            assert sample("--seeds=0-1", "--nfe=4", "--order=2", "--noise_scale=er_sde_2", "--out=named.npz") == 0
            assert np.abs(images(out) - images("named.npz")).max() <= 1

    @pytest.mark.parametrize("given", [{"solver": "ddpm", "eta": 0.0}, {"solver": "ddpm:eta=0"}])
    def test_an_option_of_zero_is_given(self, given) -> None:
        made, named = SamplerOptions(nfe=4, **given).sampler(VE())
        assert made.solver == registry.solver("ddpm", eta=0.0) != registry.solver("ddpm")
        assert named["eta"] == 0

    def test_numbers_in_yaml_are_seeds_labels_and_scales(self, inside) -> None:
        Path("numbers.yaml").write_text("seeds: 5\nlabels: 3\neps_scale: 1.01\nnfe: 2\n")
        assert sample("--config=numbers.yaml", "--out=by_numbers.npz") == 0
        assert sample("--seeds=5", "--labels=3", "--eps_scale=1.01", "--nfe=2", "--out=by_text.npz") == 0
        assert Path("by_numbers.npz").read_bytes() == Path("by_text.npz").read_bytes()

    def test_options_from_yaml(self, inside) -> None:
        Path("how.yaml").write_text("nfe: 3\nsolver: er_sde\norder: 2\nnodes: 0.5\nrelative: true\nlabels: '3'\n")
        assert sample("--config=how.yaml", "--seeds=0-3", "--out=by_yaml.npz", "--order=1") == 0
        flags = ("--nfe=3", "--solver=er_sde", "--order=1", "--nodes=0.5", "--relative", "--labels=3")
        assert sample(*flags, "--seeds=0-3", "--out=by_flags.npz") == 0
        assert Path("by_yaml.npz").read_bytes() == Path("by_flags.npz").read_bytes()


class TestGuidance:
    @pytest.fixture
    def guided(self, inside, monkeypatch) -> str:
        torch.manual_seed(0)
        save(DiffusionModule(network(), label_dropout=0.1), "guided.ckpt")
        torch.manual_seed(1)
        save(DiffusionModule(network()), "guide.ckpt")
        torch.manual_seed(2)
        classifier = NoisyClassifier(
            ClassifierEncoder((1, 4, 4), 3, width=8, multipliers=[1], blocks=1, attention=[], head_width=8)
        )
        with torch.no_grad():
            for weight in classifier.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        torch.save({"state_dict": classifier.state_dict(), SPEC_KEY: {KIND: classifier.spec}}, "classifier.ckpt")
        return "guided.ckpt"

    def test_a_guide_must_know_images_without_labels_where_these_are_made(self, guided, capsys) -> None:
        how = ["--labels=none", "--guide_scale=2", "--nfe=2", "--seeds=0"]
        assert sample(*how, "--guide=guide.ckpt", "--out=bad.npz", ckpt_path=guided) == 2
        assert "--guide guide.ckpt was trained with labels only" in capsys.readouterr().err
        assert sample(*how, f"--guide={guided}", "--out=good.npz", ckpt_path=guided) == 0

    def made(self, name: str, *options: str) -> np.ndarray:
        assert sample("--seeds=0-5", "--nfe=4", f"--out={name}", "--overwrite", *options, ckpt_path="guided.ckpt") == 0
        return images(name)

    @pytest.mark.parametrize(
        "options",
        [
            ["--cfg_scale=4"],
            ["--guide=guide.ckpt", "--guide_scale=3"],
            ["--classifier=classifier.ckpt", "--classifier_scale=50"],
            ["--eps_scale=1.1"],
            ["--eps_scale=1,0.01"],
            ["--cfg_scale=2", "--guide=guide.ckpt", "--guide_scale=2", "--eps_scale=1.05"],
        ],
    )
    def test_it_changes_images_and_is_recorded(self, guided, options) -> None:
        plain, changed = self.made("plain.npz"), self.made("changed.npz", *options)
        assert np.abs(plain - changed).max() > 1
        recorded = read_meta("changed.npz")["options"]
        given = dict(option[2:].split("=") for option in options)
        assert {
            name: str(value) for name, value in recorded.items() if name.endswith("scale") and name != "noise_scale"
        } == {
            name: value if name == "eps_scale" else str(float(value))
            for name, value in given.items()
            if "scale" in name
        }
        files = {"ckpt_path", *({"guide", "classifier"} & given.keys())}
        assert read_meta("changed.npz")["checkpoints"].keys() == read_meta("changed.npz")["paths"].keys() == files

    @pytest.mark.parametrize(
        ("text", "numbers"),
        [("1.005,-0.001", (1.005, -0.001)), (".99", (0.99,)), ("1,+1e-3", (1, 0.001)), (1.01, (1.01,)), ("2.", (2,))],
    )
    def test_how_epsilon_scaling_is_written(self, text, numbers) -> None:
        assert GuidanceOptions(eps_scale=text).scaling == numbers

    @pytest.mark.parametrize(
        ("text", "numbers"), [(".2-3", (0.2, 3)), ("1e-2-3", (0.01, 3)), ("0.19 - 1.61", (0.19, 1.61))]
    )
    def test_how_intervals_are_written(self, text, numbers) -> None:
        assert GuidanceOptions(cfg_scale=2.0, guidance_interval=text).interval == numbers

    def test_none_is_none(self, guided) -> None:
        none = self.made("none.npz", "--cfg_scale=1", "--guide=guide.ckpt", "--guide_scale=1", "--eps_scale=1")
        assert np.abs(self.made("plain.npz") - none).max() <= 1

    def test_it_acts_within_its_interval(self, guided) -> None:
        plain = self.made("plain.npz")
        assert np.array_equal(self.made("off.npz", "--cfg_scale=9", "--guidance_interval=100-200"), plain)
        everywhere = self.made("all.npz", "--cfg_scale=9")
        assert np.array_equal(self.made("on.npz", "--cfg_scale=9", "--guidance_interval=0-200"), everywhere)
        assert not np.array_equal(everywhere, plain)

    def test_unconditional_images(self, guided) -> None:
        cfg0 = self.made("cfg0.npz", "--cfg_scale=0")
        none = self.made("no_labels.npz", "--labels=none")
        assert np.abs(cfg0 - none).max() <= 1
        with np.load("no_labels.npz") as file:
            assert (file["arr_1"] == -1).all()


class TestAgain:
    """`--like`: what is stored with images is enough to make any of them again."""

    @pytest.mark.parametrize("out", ["like.npz", "like.zip", "like", "like.png"])
    def test_one_of_many(self, inside, out) -> None:
        how = ("--labels=all", "--solver=er_sde", "--order=2", "--nodes=0.4", "--relative", "--rho=5", "--batch_size=4")
        assert sample("--seeds=0-9", "--nfe=4", f"--out={out}", "--overwrite", *how) == 0
        assert sample("--seeds=0-9", "--nfe=4", "--out=all.npz", "--overwrite", *how) == 0
        assert main(["sample", f"--like={out}", "--seeds=7", "--out=seven.png", "--overwrite"]) == 0
        assert np.abs(np.asarray(Image.open("seven.png")).astype(int) - images("all.npz")[7, ..., 0]).max() <= 1
        assert main(["sample", f"--like={out}", "--seeds=0-9", "--out=again.npz", "--overwrite"]) == 0
        assert Path("again.npz").read_bytes() == Path("all.npz").read_bytes()

    def test_options_given_win(self, inside) -> None:
        assert sample("--seeds=0-3", "--nfe=4", "--out=win.npz") == 0
        assert main(["sample", "--like=win.npz", "--seeds=0-3", "--nfe=5", "--out=five.npz"]) == 0
        assert read_meta("five.npz")["options"]["nfe"] == 5

    @pytest.mark.parametrize(
        ("options", "changed", "dropped"),
        [
            (["--preset=fast"], {"nfe": 8, **as_options(default(8))}, {"nfe", "solver", *OF_SOLVER, "grid", *OF_GRID}),
            (["--solver=unipc2"], {"solver": "unipc2"}, {*OF_SOLVER}),
            (["--solver=er_sde"], {}, set()),
            (["--grid=log_uniform"], {"grid": "log_uniform"}, {*OF_GRID}),
            (["--order=1"], {"order": 1}, set()),
            (["--nodes=log", "--noise_scale=ode"], {"nodes": "log", "noise_scale": "ode"}, {"relative"}),
            (["--paper"], {"paper": True}, {"corrector", "nodes", "relative"}),
        ],
    )
    def test_options_given_replace_what_contradicts_them(self, inside, options, changed, dropped) -> None:
        how = {"order": 2, "noise_scale": "sde", "corrector": 2, "nodes": 0.4, "rho": 5.0}
        given = [f"--{name}={value}" for name, value in how.items()]
        assert sample("--seeds=0", "--nfe=4", "--out=first.npz", "--overwrite", "--relative", *given) == 0
        before = read_meta("first.npz")["options"]
        assert main(["sample", "--like=first.npz", "--seeds=1", "--out=second.npz", "--overwrite", *options]) == 0
        kept = {name: value for name, value in before.items() if name not in dropped}
        assert read_meta("second.npz")["options"] == kept | changed
        if "--paper" in options:
            assert main(["sample", "--like=second.npz", "--seeds=1", "--out=3.npz", "--overwrite", "--nodes=lam"]) == 0
            assert "paper" not in read_meta("3.npz")["options"]

    def test_named_in_a_configuration(self, inside) -> None:
        assert sample("--seeds=0-3", "--nfe=3", "--solver=heun", "--out=of_yaml.npz") == 0
        Path("like.yaml").write_text("like: of_yaml.npz\nseeds: 2\n")
        assert main(["sample", "--config=like.yaml", "--out=from_yaml.npz"]) == 0
        assert read_meta("from_yaml.npz")["options"]["solver"] == "heun"
        assert np.abs(images("from_yaml.npz") - images("of_yaml.npz")[2:3]).max() <= 1

    def test_a_strangers_file_says_how_to_make_images_and_no_more(self, inside, monkeypatch) -> None:
        monkeypatch.syspath_prepend(str(inside))
        Path("stranger.py").write_text("from pathlib import Path\nPath('canary').touch()\n")
        Path("stranger.yaml").write_text("nfe: 9\n")
        theirs = {"class_path": "stranger.Net", "init_args": {}}
        save(DiffusionModule(digits_network()), "theirs.ckpt", network=theirs)
        assert sample("--seeds=0", "--nfe=2", "--out=taken.npz") == 0
        kept, meta = Path("taken.npz").read_bytes(), read_meta("taken.npz")
        hostile = {"trust": True, "overwrite": True, "out": "taken.npz", "config": "stranger.yaml", "seeds": "0-99"}
        hostile |= {"preview": "p.png", "trajectory": "t.png", "like": "taken.npz"}
        Path("evil").mkdir(exist_ok=True)

        def like(paths: dict[str, str], *options: str) -> int:
            evil = {**meta, "options": {**meta["options"], **hostile}, "paths": {**paths, **hostile}}
            Path("evil/meta.json").write_text(json.dumps(evil))
            return main(["sample", "--like=evil", "--seeds=0", *options])

        assert like({"ckpt_path": "theirs.ckpt"}, "--out=new.npz") == 2
        assert not Path("canary").exists()
        assert like(meta["paths"], "--out=taken.npz", "--nfe=3") == 2
        assert like(meta["paths"], "--out=mine.png", "--overwrite") == 0
        assert read_meta("mine.png")["options"] == meta["options"]
        assert Path("taken.npz").read_bytes() == kept
        assert not [name for name in ("new.npz", "p.png", "t.png") if Path(name).exists()]

    def test_a_sampler_that_options_do_not_name_is_to_be_replaced(self, inside, capsys) -> None:
        assert sample("--seeds=0-3", "--nfe=2", "--out=of_class.npz") == 0
        meta = read_meta("of_class.npz")
        options = {**meta["options"], "sampler": {"class_path": "ersde_lit.solvers.Heun"}}
        del options["solver"]
        Path("of_class").mkdir(exist_ok=True)
        Path("of_class/meta.json").write_text(json.dumps({**meta, "options": options}))
        again = ["sample", "--like=of_class", "--seeds=0", "--out=again.png"]
        assert main(again) == 2
        assert "name a --solver" in capsys.readouterr().err
        assert main([*again, "--solver=heun", "--nfe=3"]) == 0

    def test_another_checkpoint_is_refused(self, inside, capsys) -> None:
        assert sample("--seeds=0-3", "--nfe=2", "--out=of_last.npz") == 0
        save(DiffusionModule(network()), "other.ckpt")
        again = ["sample", "--like=of_last.npz", "--seeds=0", "--out=x.png"]
        assert main([*again, "--ckpt_path=other.ckpt"]) == 2
        assert "other.ckpt is not the file that of_last.npz was made with" in capsys.readouterr().err
        Path("moved.ckpt").write_bytes(Path(LAST).read_bytes())
        assert main([*again, "--ckpt_path=moved.ckpt"]) == 0


class TestGoingOn:
    def test_a_finished_run_says_so_and_does_nothing(self, inside, capsys) -> None:
        command = ("--seeds=0-9", "--nfe=3", "--out=done.npz")
        assert sample(*command) == 0
        before = Path("done.npz").stat()
        assert sample(*command) == 0
        assert "done.npz is finished: nothing to do" in capsys.readouterr().out
        after = Path("done.npz").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    @pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
    def test_ctrl_c_has_its_exit_code_and_one_process_says_so(self, rank, lines, inside, capsys, monkeypatch) -> None:
        def stop(*args: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("ersde_lit.sampling.run.complete", stop)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert sample("--seeds=0-3", "--nfe=2", "--out=stopped.npz") == 130
        assert capsys.readouterr().err == "ersde_lit: stopped; the same command goes on\n" * lines

    def test_what_is_there_is_not_sampled_again(self, inside, capsys, monkeypatch) -> None:
        command = ("--seeds=0-9", "--nfe=3", "--batch_size=3")
        assert sample(*command, "--out=whole.zip") == 0
        calls = iter(range(100))

        def die(*args):
            if next(calls) == 2:
                raise KeyError("killed")
            return encode(*args)

        from ersde_lit.sampling.formats import Zip

        encode = Zip.encode
        with monkeypatch.context() as patch:
            patch.setattr(Zip, "encode", die)
            with pytest.raises(KeyError):
                sample(*command, "--out=killed.zip")
        assert not Path("killed.zip").exists()
        assert sample(*command, "--out=killed.zip") == 0
        captured = capsys.readouterr()
        assert "6 of 10 images are there: going on" in captured.err
        assert "4 now" in captured.out
        assert Path("killed.zip").read_bytes() == Path("whole.zip").read_bytes()
        assert not list(inside.glob(".killed*"))

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ("--seeds=0-5", "seeds (0-3 there, 0-5 here)"),
            ("--nfe=4", "nfe (3 there, 4 here)"),
            ("--solver=ddim", "solver (er_sde there, ddim here)"),
            ("--sigma_max=40", "sigma_max (none there, 40.0 here)"),
            ("--grid=log_uniform", "grid (edm there, log_uniform here)"),
            ("--labels=3", "labels (random there, 3 here)"),
            ("--batch_size=2", "batch_size (128 there, 2 here)"),
            ("--precision=bf16", "precision (fp32 there, bf16 here)"),
            ("--eps_scale=1.01", "eps_scale (none there, 1.01 here)"),
            ("--ckpt_path=another.ckpt", "ckpt_path (another file)"),
        ],
    )
    def test_a_command_of_other_images_is_refused_by_name(self, inside, capsys, change, named) -> None:
        if not Path("mine.npz").exists():
            assert sample("--seeds=0-3", "--nfe=3", "--out=mine.npz", "--solver=er_sde") == 0
            save(DiffusionModule(digits_network()), "another.ckpt")
        before = Path("mine.npz").read_bytes()
        capsys.readouterr()
        assert sample("--seeds=0-3", "--nfe=3", "--out=mine.npz", "--solver=er_sde", change) == 2
        error = capsys.readouterr().err
        assert "--out mine.npz exists and differs in" in error
        assert named in error
        assert Path("mine.npz").read_bytes() == before

    def test_overwrite_replaces(self, inside) -> None:
        assert sample("--seeds=0", "--nfe=2", "--out=replaced.npz") == 0
        assert sample("--seeds=0-1", "--nfe=2", "--out=replaced.npz") == 2
        assert len(images("replaced.npz")) == 1
        assert sample("--seeds=0-1", "--nfe=2", "--out=replaced.npz", "--overwrite") == 0
        assert len(images("replaced.npz")) == 2

    def test_a_full_disk(self, inside, tmp_path, capsys) -> None:
        command = ("--seeds=0-199", "--nfe=1", "--batch_size=20")
        assert sample(*command, f"--out={tmp_path / 'whole.zip'}") == 0
        with tmpfs(tmp_path / "small", "size=64k"):
            out = tmp_path / "small" / "a.zip"
            filler = tmp_path / "small" / "filler"
            filler.write_bytes(bytes(36 << 10))
            capsys.readouterr()
            assert sample(*command, f"--out={out}") == 2
            error = capsys.readouterr().err
            assert error == f"ersde_lit: sample: --out {out} cannot be written: No space left on device\n"
            assert not out.exists()
            filler.unlink()
            subprocess.run(["mount", "-o", "remount,size=1m", tmp_path / "small"], check=True)
            assert sample(*command, f"--out={out}") == 0
            assert "images are there: going on" in capsys.readouterr().err
            assert out.read_bytes() == (tmp_path / "whole.zip").read_bytes()
            assert os.listdir(tmp_path / "small") == ["a.zip"]

    def test_a_read_only_folder(self, inside, tmp_path, capsys) -> None:
        with tmpfs(tmp_path / "fixed", "ro"):
            assert sample("--seeds=0", "--nfe=1", f"--out={tmp_path / 'fixed' / 'a.npz'}") == 2
            assert "is not writable" in capsys.readouterr().err
            for view in ("preview", "trajectory"):
                picture = tmp_path / "fixed" / "a.png"
                assert sample("--seeds=0", "--nfe=1", "--out=not_begun.npz", f"--{view}={picture}") == 2
                assert f"--{view} {picture}: the folder" in capsys.readouterr().err
                assert not Path("not_begun.npz").exists()

    def test_nothing_stays_of_a_run_that_never_began(self, inside, capsys) -> None:
        module = DiffusionModule(digits_network())
        next(module.ema_denoiser.parameters()).data.fill_(float("nan"))
        save(module, "diverged.ckpt")
        assert sample("--seeds=0", "--nfe=1", "--out=never.npz", ckpt_path="diverged.ckpt") == 2
        assert "the denoiser's output is not finite at step 0" in capsys.readouterr().err
        assert not list(inside.glob("*never*"))


BAD = [
    (["--ckpt_path=absent.ckpt"], "nothing at --ckpt_path absent.ckpt"),
    (["--ckpt_path=text.ckpt"], "damaged, truncated"),
    (["--ckpt_path=empty.ckpt"], "damaged, truncated"),
    (["--ckpt_path=."], "no checkpoint at ."),
    (["--ckpt_path=tensors.ckpt"], "not one that ersde_lit's fit wrote"),
    (["--ckpt_path=wider.ckpt"], "cannot be rebuilt"),
    (["--ckpt_path=unknown.ckpt"], "there is no class ersde_lit.networks.Nothing"),
    (["--ckpt_path=foreign.ckpt"], "subprocess.Popen is not part of ersde_lit"),
    (["--ckpt_path=foreign.ckpt", "--trust"], "neither a Network nor a dataclass"),
    (["--nfe=0"], "--nfe"),
    (["--nfe=abc"], "--nfe"),
    (["--nfe=2.5"], "--nfe"),
    (["--order=3.5"], "--order: "),
    (["--nfe=40000"], "at most 32767"),
    (["--paper", "--nodes=0.3"], "the published algorithm has no nodes: leave --nodes or --paper out"),
    (["--paper", "--corrector=2"], "leave --corrector or --paper out"),
    (["--eta=0.5"], "add --solver ddim"),
    (["--churn=4"], "add --solver heun"),
    (["--noise_scale=power:x"], "'x' is no number; write it as power:P or eta:NAME:S"),
    (["--noise_scale=window:1:2:1"], "0 < low < high"),
    (["--guide_scale=nan"], "--guide_scale: "),
    (["--ckpt_path="], "no checkpoint at ''"),
    (["--out=/"], "--out '/' is no name"),
    (["--out="], "--out '' is no name"),
    (["--out=same.png", "--preview=./same.png"], "--preview ./same.png is also --out"),
    (["--trajectory=same.png", "--preview=same.png"], "--trajectory same.png is also --preview"),
    (["--ckpt_path=there.npz", "--out=there.npz", "--overwrite"], "--out there.npz is also --ckpt_path"),
    (["--guide=small.ckpt", "--guide_scale=2", "--preview=small.ckpt"], "--preview small.ckpt is also --guide"),
    (["--out=there.npz", "--overwrite"], "there.npz exists and is not a set of samples, so it stays"),
    (["--config=binary.yaml"], "no text"),
    (["--like=small.ckpt"], "small.ckpt is no set of samples"),
    (["--solver=best"], "--solver best: choose from default, noisy, heun, er_sde"),
    (["--grid=best"], "--grid best: choose from edm, log_uniform"),
    (["--noise_scale=er_sde_9"], "er_sde_5"),
    (["--solver=ddim", "--noise_scale=sde"], "has no option 'noise_scale'"),
    (["--order=4", "--solver=ddim"], "has no option 'order'"),
    (["--corrector=0"], "--corrector"),
    (["--nodes=-1"], "--nodes: "),
    (["--relative"], "relative nodes need a number"),
    (["--paper", "--order=4"], "the published algorithm has orders 1 to 3"),
    (["--noise_scale=er_sde_4", "--sigma_max=5000"], "er_sde_4"),
    (["--grid=log_uniform", "--rho=5"], "has no option 'rho'"),
    (["--grid=uniform_t", "--rho=5"], "--grid uniform_t"),
    (["--sigma_min=90"], "descending"),
    (["--preset=fast"], "leave it or --nfe out"),
    (["--preset=slow"], "--preset: "),
    (["--seeds=5-1"], "runs downwards"),
    (["--seeds=a"], "--seeds"),
    (["--seeds=1,1"], "given twice"),
    (["--labels=10"], "no class 10"),
    (["--labels=cat"], "--labels"),
    (["--labels=none"], "trained with labels only"),
    (["--cfg_scale=2"], "trained with labels only"),
    (["--cfg_scale=2", "--labels=none"], "--labels none gives them none"),
    (["--classifier=small.ckpt", "--classifier_scale=2", "--labels=none"], "--labels none gives them none"),
    (["--cfg_scale=much"], "--cfg_scale: "),
    (["--guide=guide.ckpt"], "--guide and --guide_scale go together"),
    (["--classifier_scale=2"], "--classifier and --classifier_scale go together"),
    (["--guide=text.ckpt", "--guide_scale=2"], "text.ckpt is damaged"),
    (["--guide=small.ckpt", "--guide_scale=2"], "version of the guided model"),
    (["--classifier=small.ckpt", "--classifier_scale=2"], "small.ckpt"),
    (["--guidance_interval=1-2"], "without guidance"),
    (["--guide=small.ckpt", "--guide_scale=2", "--guidance_interval=low"], "write it as in 0.19-1.61"),
    (["--guide=same.ckpt", "--guide_scale=2", "--guidance_interval=2-1"], "low < high"),
    (["--eps_scale=1;2"], "write it as in 1.005"),
    (["--eps_scale=0"], "scale > 0"),
    (["--batch_size=0"], "--batch_size"),
    (["--accelerator=abacus"], "--accelerator"),
    (["--devices=0"], "--devices"),
    (["--precision=int8"], "--precision"),
    (["--compile=best"], "--compile"),
    (["--out=there.npz"], "there.npz exists"),
    (["--out=absent/x.npz"], "no folder"),
    (["--out=x.gif"], "unknown ending .gif"),
    (["--subdirs"], "subdirs are of a folder"),
    (["--out=folder_of_mine", "--overwrite"], "not a set of samples"),
    (["--preview=there.npz"], "ends in .png"),
    (["--trajectory=absent/x.png"], "no folder"),
    (["--like=absent.npz"], "nothing at absent.npz"),
    (["--like=there.npz"], "there.npz is damaged"),
    (["--like"], "--like"),
    (["--step=3"], "unrecognized arguments"),
    (["--config=absent.yaml"], "absent.yaml"),
]


@pytest.fixture
def bad_files(inside) -> Path:
    """What the bad inputs refer to."""
    Path("text.ckpt").write_text("no checkpoint")
    Path("there.npz").write_bytes(b"kept")
    Path("binary.yaml").write_bytes(b"\xd4\x00")
    if not Path("same.ckpt").exists():
        Path("empty.ckpt").touch()
        Path("folder_of_mine").mkdir(exist_ok=True)
        torch.save({"weight": torch.zeros(3)}, "tensors.ckpt")
        save(DiffusionModule(network()), "small.ckpt")
        same = DiffusionModule(digits_network(), sigma_data=0.7)
        save(same, "same.ckpt")
        wider = DiffusionModule(digits_network(width=16)).spec["network"]
        save(same, "wider.ckpt", network=wider)
        save(same, "unknown.ckpt", network={**wider, "class_path": "ersde_lit.networks.Nothing"})
        save(
            same, "foreign.ckpt", network={"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "canary"]}}
        )
    return inside


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_gets_one_line_and_exit_code_2(bad_files, capsys, options: list[str], message: str) -> None:
    before = set(os.listdir())
    assert sample("--seeds=0-3", "--nfe=5", "--out=new.npz", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("ersde_lit: ")
    assert message in error
    assert error.count("\n") == 1
    assert Path("there.npz").read_bytes() == b"kept"
    assert set(os.listdir()) == before


def test_checkpoints_cut_anywhere_get_one_line(inside, capsys) -> None:
    whole = Path(LAST).read_bytes()
    for length in [0, 1, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 12)]:
        Path("cut.ckpt").write_bytes(whole[:length])
        assert sample("--seeds=0-3", "--nfe=5", "--out=cut.npz", ckpt_path="cut.ckpt") == 2, length
        error = capsys.readouterr().err
        assert "cut.ckpt is damaged, truncated" in error
        assert error.count("\n") == 1
    assert not list(inside.glob("*cut.npz*"))


class Hostile:
    """Unpickling it runs a command."""

    def __reduce__(self):
        return os.system, ("touch canary",)


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch, old format", "in a checkpoint"])
def test_hostile_checkpoints_are_not_executed(inside, capsys, kind: str) -> None:
    match kind:
        case "pickle":
            Path("hostile.ckpt").write_bytes(pickle.dumps(Hostile()))
        case "torch":
            torch.save(Hostile(), "hostile.ckpt")
        case "torch, old format":
            torch.save(Hostile(), "hostile.ckpt", _use_new_zipfile_serialization=False)
        case _:
            checkpoint = torch.load(LAST, weights_only=True)
            torch.save({**checkpoint, "callbacks": Hostile()}, "hostile.ckpt")
    assert sample("--seeds=0", "--nfe=1", "--out=hostile.npz", ckpt_path="hostile.ckpt") == 2
    assert "damaged, truncated or not a checkpoint" in capsys.readouterr().err
    guide = ("--guide=hostile.ckpt", "--guide_scale=2")
    assert sample("--seeds=0", "--nfe=1", "--out=hostile.npz", *guide) == 2
    assert not Path("canary").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [[], ["--compile=reduce-overhead"]])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(inside, precision: str, compiled: list[str]) -> None:
    how = ["--seeds=0-40", "--batch_size=16", "--nfe=6", "--accelerator=cuda", f"--precision={precision}", *compiled]
    for out in ("gpu.npz", "again.npz"):
        assert sample(*how, f"--out={out}", "--overwrite") == 0
    assert np.array_equal(images("gpu.npz"), images("again.npz"))
    assert sample("--seeds=0-40", "--nfe=6", "--out=cpu.npz", "--overwrite") == 0
    assert np.abs(images("gpu.npz") - images("cpu.npz")).mean() < (1 if precision == "fp32" else 4)


def test_required_options_are_asked_for(capsys) -> None:
    assert main(["sample"]) == 2
    assert "ckpt_path" in capsys.readouterr().err


def test_commands_that_do_not_exist_are_refused(capsys) -> None:
    assert main(["smaple"]) == 2
    assert "choose one of fit" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(capsys, arguments: list[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert [name for name in COMMANDS if f"  {name} " not in out] == []


def test_a_bug_is_not_disguised_as_bad_input(inside, monkeypatch) -> None:
    def bug(*args, **kwargs):
        raise KeyError("a bug")

    monkeypatch.setattr("ersde_lit.training.load", bug)
    with pytest.raises(KeyError):
        sample("--seeds=0", "--out=bug.npz")


@pytest.fixture
def of_few_classes(inside, tmp_path) -> str:
    """The run's checkpoint, as if only some digits had been trained."""
    checkpoint = torch.load(LAST, weights_only=True)
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "the nine"]
    checkpoint["classes"] = {"trained": [0, 7, 9], "names": names}
    torch.save(checkpoint, tmp_path / "few.ckpt")
    return str(tmp_path / "few.ckpt")


@pytest.mark.parametrize(
    ("labels", "made"),
    [([], {0, 7, 9}), (["--labels=all"], {0, 7, 9}), (["--labels=seven,the nine"], {7, 9}), (["--labels=7"], {7})],
)
def test_only_trained_classes_are_sampled(of_few_classes, tmp_path, labels, made) -> None:
    assert sample("--seeds=0-29", "--nfe=2", f"--out={tmp_path / 'a.npz'}", *labels, ckpt_path=of_few_classes) == 0
    with np.load(tmp_path / "a.npz") as file:
        assert {*file["arr_1"].tolist()} == made


@pytest.mark.parametrize(
    ("labels", "message"),
    [("3", "class 3 had no training image; choose from 0,7,9"), ("three", "class 3 had no training image"),
     ("sevne", "did you mean 'seven'?"), ("nine", "did you mean 'the nine'?")],
)  # fmt: skip
def test_untrained_and_unknown_classes_get_one_line(of_few_classes, tmp_path, capsys, labels, message) -> None:
    out = tmp_path / "a.npz"
    assert sample("--seeds=0-9", "--nfe=2", f"--out={out}", f"--labels={labels}", ckpt_path=of_few_classes) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ersde_lit: sample: --labels {labels!r}: ")
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_the_run_s_checkpoint_names_its_classes(inside, tmp_path) -> None:
    assert torch.load(LAST, weights_only=True)["classes"] == {"trained": None, "names": list("0123456789")}
