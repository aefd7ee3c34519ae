import csv
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import zipfile
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
import yaml
from efficientnet_weights import hashed_lite0
from image_sets import pixels
from PIL import Image
from ranks import run_on_ranks
from tiny import network

from ersde_lit.cli import main
from ersde_lit.cli.options.sweep import SweepOptions
from ersde_lit.data import Digits
from ersde_lit.denoisers import VE
from ersde_lit.metrics import Features, Scores, reference_of, write_reference
from ersde_lit.metrics.classifier import classifier
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.grid import image_grid
from ersde_lit.sampling.images import quantise
from ersde_lit.solvers import DDIM, ERSDE, Heun, Sampler, TableSampler, grids
from ersde_lit.training import DiffusionModule, load
from ersde_lit.training.averaged import SPEC_KEY

LAST = "runs/digits/checkpoints/last.ckpt"
DATA = "--data=ersde_lit.data.Digits"


class Means(Features):
    """Six numbers of an image of any size: fast, and without weights."""

    num_features = 6

    def forward(self, images):
        x = images.float() / 255
        quarters = [q.mean(dim=(1, 2, 3)) for half in x.chunk(2, 2) for q in half.chunk(2, 3)]
        return torch.stack([*quarters, x.var(dim=(1, 2, 3)), x.amax(dim=(1, 2, 3))], 1)


class Dark(Sampler):
    """A sampler of somebody else's: one call, and half as bright."""

    def __init__(self, by: float = 0.5) -> None:
        self.by = by

    def __call__(self, denoiser, noise, nfe, labels=None, callback=None):
        x0 = TableSampler(DDIM(), grids.edm)(denoiser, noise, nfe, labels)
        return (x0 + 1) * self.by - 1


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This file as a module, of which a user's classes come by class path."""
    monkeypatch.setitem(sys.modules, "of_a_user", sys.modules[__name__])
    for theirs in (Means, Dark):
        monkeypatch.setattr(theirs, "__module__", "of_a_user")


MEANS = "--features=of_a_user.Means"


def evaluate(*options: str, ckpt_path: str = LAST, features: str = MEANS, data: str = DATA) -> int:
    return main(["evaluate", f"--ckpt_path={ckpt_path}", features, data, *options])


def records(out: str | Path) -> dict[tuple, dict]:
    lines = map(json.loads, (Path(out) / "cells.jsonl").read_text().splitlines())
    return {(r["sampler"], r["nfe"], r["seeds"]): r for r in lines}


def scored(sampler, seeds, nfe: int, denoiser=None, metrics=("fid",), features=None) -> dict[str, float]:
    """By hand, from the averaged weights, in one batch."""
    features = features or Means()
    scores = Scores(features, reference_of(Digits(), features), metrics)
    for block in generate(denoiser or load(LAST).ema_denoiser, sampler, seeds, nfe, batch_size=len(seeds)):
        scores.update(quantise(block.images))
    return scores.compute()


def reference() -> str:
    write_reference(reference_of(Digits(), Means(), keep_features=0), "digits_means.npz")
    return "digits_means.npz"


class TestNumbers:
    def test_they_are_those_of_sampling_and_measuring_by_hand(self, inside) -> None:
        solvers = "--solvers=er_sde:order=2:corrector=2,heun"
        metrics = ("fid", "kid", "precision", "recall")
        flags = ("--nfe=4,5", "--seeds", "0-39", "40-79", f"--metrics={','.join(metrics)}", "--batch_size=40")
        assert evaluate(solvers, *flags, "--out=by_hand") == 0
        kept = records("by_hand")
        er_sde = "er_sde:order=2:corrector=2"
        keys = {(er_sde, 4), (er_sde, 5), ("heun", 3), ("heun", 5)}
        sets = ("0-39", "40-79")
        assert set(kept) == {(*key, seeds) for key in keys for seeds in sets} | {("real, held out", None, None)}
        for seeds, numbers in zip(sets, (range(40), range(40, 80)), strict=True):
            for label, sampler, nfe in ((er_sde, TableSampler(ERSDE(2, corrector=2)), 4), ("heun", Heun(), 3)):
                record = kept[label, nfe, seeds]
                assert record["scores"] == pytest.approx(scored(sampler, numbers, nfe, metrics=metrics), rel=1e-9)
                assert record["images"] == 40
        real = Scores(Means(), reference_of(Digits(), Means()), metrics)
        real.update(Digits().held_out(40))
        assert kept["real, held out", None, None]["scores"] == pytest.approx(real.compute(), rel=1e-9)

    def test_raw_weights_are_never_seen(self, inside) -> None:
        """Two models that differ in raw weights alone score the same, two that differ in averaged ones do not."""
        checkpoint = torch.load(LAST, weights_only=True)
        for part in ("denoiser", "ema_denoiser"):
            state = {
                name: value * 0.9 if name.startswith(f"{part}.") and value.is_floating_point() else value
                for name, value in checkpoint["state_dict"].items()
            }
            torch.save({**checkpoint, "state_dict": state}, f"other_{part}.ckpt")
        values = {}
        for name in (LAST, "other_denoiser.ckpt", "other_ema_denoiser.ckpt"):
            out = f"weights_{Path(name).stem}"
            assert evaluate("--nfe=3", "--seeds=0-19", f"--out={out}", ckpt_path=name) == 0
            values[name] = records(out)["default", 3, "0-19"]["scores"]["fid"]
        assert values["other_denoiser.ckpt"] == values[LAST]
        assert values["other_ema_denoiser.ckpt"] != pytest.approx(values[LAST], rel=1e-2)

    def test_classifier_features_and_inception_score(self, inside) -> None:
        flags = ("--nfe=3", "--seeds=0-29", "--metrics=fid,is", "--out=classified", "--solvers=ddim", "--batch_size=30")
        assert evaluate(*flags, features="--features=classifier") == 0
        by_hand = scored(TableSampler(DDIM()), range(30), 3, metrics=("fid", "is"), features=classifier(Digits()))
        assert records("classified")["ddim", 3, "0-29"]["scores"] == pytest.approx(by_hand, rel=1e-6)

    def test_grids_and_samplers_of_others(self, inside) -> None:
        samplers = {
            "mine": {"solver": "er_sde", "order": 1, "noise_scale": "ode"},
            "dark": {"class_path": "of_a_user.Dark", "init_args": {"by": 0.25}},
        }
        Path("samplers.yaml").write_text(yaml.safe_dump({"samplers": samplers, "nfe": [4], "seeds": ["0-29"]}))
        flags = ("--config=samplers.yaml", "--solvers=ddim", "--grids=edm,log_uniform:sigma_max=20", "--batch_size=30")
        assert evaluate(*flags, "--out=joined") == 0
        kept = {label: record["scores"]["fid"] for (label, _, _), record in records("joined").items()}
        log_uniform = "log_uniform:sigma_max=20"
        labels = {f"{name} on {grid}" for name in ("ddim", "mine") for grid in ("edm", log_uniform)}
        assert set(kept) == {*labels, "dark", "real, held out"}
        expected = {
            "ddim on edm": TableSampler(DDIM()),
            "mine on edm": TableSampler(DDIM()),
            f"ddim on {log_uniform}": TableSampler(DDIM(), lambda n: grids.log_uniform(n, lam_max=20.0)),
            "dark": Dark(0.25),
        }
        for label, sampler in expected.items():
            assert kept[label] == pytest.approx(scored(sampler, range(30), 4)["fid"], rel=1e-2), label
        plain = records("joined")["dark", 4, "0-29"]["description"]["options"]["sampler"]
        assert plain == {"class_path": "of_a_user.Dark", "init_args": {"by": 0.25}}

    def test_images_from_disk_score_as_the_cell_they_come_from(self, inside, capsys) -> None:
        assert evaluate("--nfe=3", "--seeds=0-29", "--out=of_disk", "--keep_images", "--metrics=fid,kid") == 0
        cell = records("of_disk")["default", 3, "0-29"]["scores"]
        (npz,) = Path("of_disk/images").glob("*.npz")
        images = np.load(npz)["arr_0"]
        Path("as_folder").mkdir(exist_ok=True)
        with zipfile.ZipFile("as.zip", "w") as file:
            for number, image in enumerate(images):
                Image.fromarray(image[..., 0]).save(path := f"as_folder/{number}.png")
                file.write(path, f"{number}.png")
        capsys.readouterr()
        paths = (str(npz), "as_folder", "as.zip")
        assert main(["evaluate", "--images", *paths, DATA, MEANS, "--metrics=fid,kid", "--out=disk_table"]) == 0
        assert main(["evaluate", "--images", *paths, DATA, MEANS, "--out=disk_table"]) == 2  # nothing is replaced
        with Path("disk_table/results.csv").open() as file:
            rows = {row["sampler"]: row for row in csv.DictReader(file)}
        assert set(rows) == {*paths, "real, held out"}
        for path in paths:
            assert {name: float(rows[path][name]) for name in cell} == pytest.approx(cell, rel=1e-12)
            assert rows[path]["images"] == "30"
        table = Path("disk_table/results.md").read_text()
        assert f"| as_folder | 30 | {cell['fid']:.6g} | {cell['kid']:.6g} |" in table
        said = capsys.readouterr().out
        assert f"{cell['fid']:.6g}" in said
        assert "page    disk_table/results.html" in said
        assert f"<td>{cell['fid']:.6g}</td>" in Path("disk_table/results.html").read_text()

    def test_sizes_of_both_sides_are_said_and_copies_and_a_warning_where_they_differ(self, inside, capsys) -> None:
        generator = np.random.default_rng(0)
        for name, size in {"a32": (32, 32, 3), "b64": (64, 64, 3), "grey64": (64, 64)}.items():
            Path(name).mkdir()
            for number in range(12):
                image = Image.fromarray(generator.integers(0, 256, size, np.uint8))
                image.save(f"{name}/{number}.png")
                if name == "a32":
                    image.save(f"{name}/{number}_again.png")
        assert main(["reference", "a32", "--out=a32.npz", MEANS]) == 0
        assert "warning: 12 of 24 images of the reference are copies" in capsys.readouterr().out
        small = "those of the reference 32x32, 3 channels"
        for reference in ("a32", "a32.npz"):
            out = f"sizes_{reference}"
            sets = ("b64", "grey64", "a32")
            assert main(["evaluate", "--images", *sets, f"--reference={reference}", MEANS, f"--out={out}"]) == 0
            for text in (capsys.readouterr().out, Path(out, "results.md").read_text()):
                assert f"Warning: images are 64x64, 3 channels, and {small}" in text
                assert f"Warning: images are 64x64, 1 channel, and {small}" in text
                assert "Images: b64 64x64, 3 channels; grey64 64x64, 1 channel; a32 32x32, 3 channels." in text
                assert "(32x32, 3 channels)" in text
                assert "Warning: 12 of 24 images of the reference are copies of others" in text
            with Path(out, "results.csv").open() as file:
                rows = {row["sampler"]: row for row in csv.DictReader(file)}
            assert rows["b64"]["image_size"] == "64x64, 3 channels"
            assert rows["b64"]["reference_size"] == "32x32, 3 channels"
        assert evaluate("--nfe=2", "--seeds=0-19", "--out=sizes_of_model", data="--reference=a32") == 0
        kept = records("sizes_of_model")["default", 2, "0-19"]
        assert kept["image_size"] == "8x8, 1 channel"
        assert any(f"images are 8x8, 1 channel, and {small}" in note for note in kept["notes"])

    def test_precision_is_named_and_tf32_allowed_by_name_alone(self, inside, monkeypatch) -> None:
        seen = set()
        forward = DiffusionModule.load_state_dict  # any method of the model that is loaded once

        def spy(module, *given, **more):
            flag = torch.backends.cuda.matmul
            module.ema_denoiser.register_forward_pre_hook(lambda *_: seen.add(flag.allow_tf32))
            return forward(module, *given, **more)

        monkeypatch.setattr(DiffusionModule, "load_state_dict", spy)
        for precision, allowed in {"fp32": False, "tf32": True}.items():
            seen.clear()
            assert evaluate("--nfe=2", "--seeds=0-19", f"--out=in_{precision}", f"--precision={precision}") == 0
            assert seen == {allowed}
            kept = records(f"in_{precision}")["default", 2, "0-19"]
            assert kept["protocol"]["precision"] == kept["description"]["options"]["precision"] == precision
            assert "TF32" in kept["protocol"]["arithmetic"]
            assert f"sampled in {precision}" in Path(f"in_{precision}/results.md").read_text()

    def test_held_out_images_of_other_data_are_measured_anew(self, inside) -> None:
        kept = []
        for val_size, out in ((100, "shared"), (60, "shared"), (60, "alone")):
            data = [f"--data=ersde_lit.data.Digits:val_size={val_size}", f"--reference={reference()}", MEANS]
            how = ["--nfe=1", "--seeds=0-19", f"--out={out}"]
            assert main(["evaluate", f"--ckpt_path={LAST}", *data, *how]) == 0
            kept.append(records(out)["real, held out", None, None]["scores"])
        assert kept[0] != kept[1] == kept[2]

    def test_a_reference_file_gives_the_numbers_of_its_images(self, inside) -> None:
        flags = ("--nfe=3", "--seeds=0-19")
        assert evaluate(*flags, "--out=of_data") == 0
        assert evaluate(*flags, "--out=of_file", data=f"--reference={reference()}") == 0
        of_data, of_file = records("of_data"), records("of_file")
        assert set(of_data) - set(of_file) == {("real, held out", None, None)}
        key = ("default", 3, "0-19")
        assert of_file[key]["scores"] == pytest.approx(of_data[key]["scores"], rel=1e-12)
        assert evaluate(*flags, "--out=of_file") == 0  # the same statistics by another name

    def test_data_from_a_configuration_and_with_arguments(self, inside) -> None:
        Path("run.yaml").write_text("data: {class_path: ersde_lit.data.Digits, init_args: {val_size: 20}}\n")
        for out, data in (("of_yaml", "run.yaml"), ("of_words", "ersde_lit.data.Digits:val_size=20")):
            assert evaluate("--nfe=2", "--seeds=0-59", f"--out={out}", data=f"--data={data}") == 0
            assert records(out)["real, held out", None, None]["images"] == 20
        assert [r["scores"] for r in records("of_yaml").values()] == [r["scores"] for r in records("of_words").values()]

    def test_guidance_is_evaluated_and_recorded(self, inside) -> None:
        save(DiffusionModule(network(image_shape=(1, 8, 8), num_classes=10), label_dropout=0.1), "dropped.ckpt")
        Path("seven.yaml").write_text("labels: 7\n")
        plain, guided = ("--nfe=3", "--seeds=0-19"), ("--cfg_scale=3", "--config=seven.yaml")
        assert evaluate(*plain, "--out=plain", ckpt_path="dropped.ckpt") == 0
        assert evaluate(*plain, *guided, "--out=guided", ckpt_path="dropped.ckpt") == 0
        one, other = (records(out)["default", 3, "0-19"] for out in ("plain", "guided"))
        assert other["description"]["options"]["cfg_scale"] == 3
        assert other["description"]["options"]["labels"] == "7"
        assert one["scores"] != other["scores"]


ONE_BAD = """
import torch
from ersde_lit.solvers import DDIM, Sampler, TableSampler

class OneBad(Sampler):
    def __call__(self, denoiser, noise, nfe, labels=None, callback=None):
        images = TableSampler(DDIM())(denoiser, noise, nfe, labels)
        return images.masked_fill((noise._seeds.flatten() == 15).view(-1, 1, 1, 1), torch.nan)
"""


@pytest.fixture
def one_bad(inside, monkeypatch) -> None:
    """A sampler, in bad.yaml, whose image of seed 15 is not finite; in other processes too."""
    (inside / "one_bad.py").write_text(ONE_BAD)
    monkeypatch.syspath_prepend(inside)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(inside), os.environ.get("PYTHONPATH")))))
    (inside / "bad.yaml").write_text("samplers: {bad: {class_path: one_bad.OneBad}}\n")


def save(module: DiffusionModule, path: str) -> None:
    with torch.no_grad():
        for weight in module.parameters():  # no longer zero where it was
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    torch.save({"state_dict": module.state_dict(), SPEC_KEY: module.spec}, path)


class TestTables:
    FLAGS = ("--solvers=ddim,heun", "--nfe=4,6", "--seeds", "0-19", "20-39", "40-59")

    @pytest.mark.usefixtures("real_plots")
    def test_table_csv_and_plot(self, inside, capsys) -> None:
        assert evaluate(*self.FLAGS, "--out=shown") == 0
        printed, kept = capsys.readouterr().out, records("shown")
        values = [kept["ddim", 4, seeds]["scores"]["fid"] for seeds in ("0-19", "20-39", "40-59")]
        mean, std = np.mean(values), np.std(values, ddof=1)
        text = Path("shown/results.md").read_text()
        (row,) = re.findall(r"\| ddim \| (.*) \|", text)
        shown, spread = row.split(" | ")[0].strip("*").split(" ± ")
        assert float(shown) == pytest.approx(mean, abs=0.06 * std)
        assert float(spread) == pytest.approx(std, rel=0.06)
        assert f"{shown} ± {spread}" in printed
        assert "| sampler | NFE 4 | NFE 6 |" in text
        assert "(3 calls)" in text and "(5 calls)" in text  # noqa: PT018
        for said in ("20 images (seeds 0-19, 20-39, 40-59): mean and standard deviation of 3 sets",
                     "training images of Digits", "Means", "Averaged weights (EMA, half-life 20,000 images)",
                     "uint8, floor(127.5 x + 128)", f"torch {torch.__version__.split('+')[0]}"):  # fmt: skip
            assert said in text
            assert said in printed
        with Path("shown/results.csv").open() as file:
            rows = {(row["sampler"], row["nfe"], row["seeds"]): row for row in csv.DictReader(file)}
        assert {(s, n and int(n), seeds) for s, n, seeds in rows} == {(s, n or "", x or "") for s, n, x in kept}
        row = rows["heun", "3", "20-39"]
        assert float(row["fid"]) == kept["heun", 3, "20-39"]["scores"]["fid"]
        assert (row["images"], row["option solver"], row["option batch_size"]) == ("20", "heun", "128")
        assert len(row["sha256 ckpt_path"]) == 64
        assert row["fingerprint"] == Means().fingerprint
        width, height = Image.open("shown/fid.png").size
        assert width > 500
        assert height > 400
        assert "FID of 20 samples to 1,617 training images of Digits, Means" in text

    def test_all_files_are_named_and_nothing_else_is_left(self, inside, capsys) -> None:
        assert evaluate("--nfe=2,3", "--seeds=0-19", "--solvers=ddim,heun", "--metrics=fid,kid", "--out=files") == 0
        assert capsys.readouterr().out.splitlines()[-3:] == [
            "tables  files/results.csv, files/results.md", "plots   files/fid.png, files/kid.png",
            "page    files/results.html",
        ]  # fmt: skip
        assert sorted(os.listdir("files")) == [
            "cells.jsonl", "fid.png", "kid.png", "pictures", "results.csv", "results.html", "results.md"
        ]  # fmt: skip
        html = Path("files/results.html").read_text()
        assert html.count('src="data:image/png;base64,') == 2 + 4
        assert "no picture" not in html
        for words in (LAST, "training images of Digits, Means", 'alt="heun, NFE 1, seeds 0-15"', "NFE 3"):
            assert words in html

    def test_pictures_are_of_the_images_that_were_measured(self, inside) -> None:
        assert evaluate("--nfe=3", "--seeds=30-49", "--out=seen", "--keep_images") == 0
        (npz,) = Path("seen/images").glob("*.npz")
        (png,) = Path("seen/pictures").glob("*.png")
        first = torch.from_numpy(np.load(npz)["arr_0"][:16]).movedim(-1, 1)
        assert np.array_equal(np.asarray(Image.open(png)), image_grid(first, 4)[0])

    def test_a_picture_is_there_before_the_images_are_deleted(self, inside, monkeypatch) -> None:
        flags = ("--nfe=3", "--seeds=0-19", "--out=cut_short")
        with monkeypatch.context() as patch:
            patch.setattr("ersde_lit.sweeps.cells.Cells.add", lambda *given: (_ for _ in ()).throw(KeyError("killed")))
            with pytest.raises(KeyError):
                evaluate(*flags, data=f"--reference={reference()}")
        assert len(os.listdir("cut_short/pictures")) == len(os.listdir("cut_short/images")) == 1
        assert evaluate(*flags, data=f"--reference={reference()}") == 0
        assert "no picture" not in Path("cut_short/results.html").read_text()

    def test_what_weakens_a_number_is_said_beside_it(self, inside, capsys) -> None:
        flags = ("--nfe=2", "--seeds=0-3", "--solvers=ddim,heun")  # of both at once
        assert evaluate(*flags, "--out=few") == 0
        said = "4 images for 6 features: their covariance is singular and FID is biased upwards"
        assert capsys.readouterr().out.count(said) == Path("few/results.md").read_text().count(said) == 1
        assert all(said in note for record in records("few").values() for note in record["notes"])

    def test_efficientnet_is_named_and_said_not_to_be_inception(self, inside) -> None:
        hashed_lite0(Path("lite0.pth"))
        for name, seed in (("made.npz", 0), ("real.npz", 1)):
            np.savez(name, arr_0=pixels(4, seed=seed).transpose(0, 2, 3, 1))
        options = ["--features=efficientnet", "--weights=lite0.pth", "--metrics=fid", "--out=lite0"]
        assert main(["evaluate", "--images", "made.npz", "--reference=real.npz", *options]) == 0
        for file in ("results.md", "results.html"):
            said = unescape(Path("lite0", file).read_text())
            assert "EfficientNet-Lite0 ImageNet features (not Inception's" in said
            assert "4 images for 1280 features: their covariance is singular" in said
            assert "4 images of the reference for 1280 features" in said

    def test_best_of_three(self, inside, capsys) -> None:
        assert evaluate(*self.FLAGS, "--out=best") == 0
        assert evaluate(*self.FLAGS, "--out=best", "--best") == 0
        values = [
            record["scores"]["fid"]
            for (label, nfe, _), record in records("best").items()
            if (label, nfe) == ("ddim", 6)
        ]
        assert f"{min(values):.4g}" in Path("best/results.md").read_text()
        assert f"{min(values):.4g}" in capsys.readouterr().out
        assert "the best of 3 sets" in Path("best/results.md").read_text()
        assert "±" not in Path("best/results.md").read_text()


class TestGoingOn:
    def test_finished_cells_are_not_measured_again(self, inside, monkeypatch) -> None:
        flags = ("--nfe=3,4", "--seeds=0-19", "--out=once")
        assert evaluate(*flags) == 0
        before = Path("once/cells.jsonl").read_text()

        def never(*args):
            raise AssertionError("measured again")

        with monkeypatch.context() as patch:
            patch.setattr("ersde_lit.sweeps.sweep.measure", never)
            patch.setattr("ersde_lit.sweeps.sweep.complete", never)
            assert evaluate(*flags) == 0
        assert Path("once/cells.jsonl").read_text() == before
        assert evaluate("--solvers=ddim", *flags) == 0  # joins those that are there
        assert "| default |" in Path("once/results.md").read_text()
        assert Path("once/cells.jsonl").read_text().startswith(before)

    def test_more_metrics_join_those_that_are_there(self, inside) -> None:
        flags = ("--nfe=3", "--seeds=0-19", "--out=more")
        assert evaluate(*flags, "--metrics=fid") == 0
        fid = records("more")["default", 3, "0-19"]["scores"]["fid"]
        assert evaluate(*flags, "--metrics=kid") == 0
        assert records("more")["default", 3, "0-19"]["scores"].keys() == {"fid", "kid"}
        assert records("more")["default", 3, "0-19"]["scores"]["fid"] == fid

    def test_killed_in_mid_cell_it_goes_on_and_ends_with_the_same_rows(self, inside, capsys, monkeypatch) -> None:
        flags = ("--nfe=3,4", "--seeds=0-39", "--batch_size=10")
        assert evaluate(*flags, "--out=whole") == 0
        from ersde_lit.sampling.formats import Npz

        encode, calls = Npz.encode, iter(range(100))

        def die(*args):
            if next(calls) == 6:  # the third block of the second cell
                raise KeyError("killed")
            return encode(*args)

        with monkeypatch.context() as patch:
            patch.setattr(Npz, "encode", die)
            with pytest.raises(KeyError):
                evaluate(*flags, "--out=killed")
        assert len(records("killed")) == 2  # held-out images, and the first cell
        capsys.readouterr()
        assert evaluate(*flags, "--out=killed") == 0
        assert "20 of 40 images are there: going on" in capsys.readouterr().err
        whole, killed = records("whole"), records("killed")
        assert {key: record["scores"] for key, record in killed.items()} == {
            key: record["scores"] for key, record in whole.items()
        }
        assert not Path("killed/images").exists()
        assert sorted(os.listdir("killed")) == sorted(os.listdir("whole"))

    @pytest.mark.slow
    def test_killed_for_good_it_goes_on_and_ends_with_the_same_rows(self, inside) -> None:
        flags = ("--nfe=20", "--seeds=0-1999", "--batch_size=10")
        command = ["evaluate", f"--ckpt_path={LAST}", "--features=classifier", DATA, *flags]
        assert main([*command, "--out=calm"]) == 0
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, "-m", "ersde_lit", *command, "--out=shot"], env=environment)
        while len(list(Path("shot/images").glob(".*.parts/*.zip"))) < 5:
            time.sleep(0.05)
            assert process.poll() is None
        process.kill()
        process.wait()
        assert set(records("shot")) == {("real, held out", None, None)}
        assert main([*command, "--out=shot"]) == 0
        calm, shot = records("calm"), records("shot")
        assert {key: r["scores"] for key, r in shot.items()} == {key: r["scores"] for key, r in calm.items()}

    def test_a_cell_that_is_not_finite_is_nan_and_the_others_go_on(self, inside, one_bad, capsys) -> None:
        flags = ("--nfe=3,4", "--seeds=0-29", "--batch_size=10", "--metrics=fid,kid", "--config=bad.yaml")
        assert evaluate(*flags, "--out=spoilt", "--solvers=ddim") == 0
        kept, said = records("spoilt"), capsys.readouterr().out
        assert not Path("spoilt/images").exists()
        for nfe in (3, 4):
            assert all(np.isnan([*kept["bad", nfe, "0-29"]["scores"].values()]))
            assert kept["bad", nfe, "0-29"]["scores"].keys() == {"fid", "kid"}
            assert kept["bad", nfe, "0-29"]["images"] == 0
            assert kept["ddim", nfe, "0-29"]["scores"]["fid"] > 0
        for text in (said, Path("spoilt/results.md").read_text()):
            assert text.count("Warning: bad, NFE 3, seeds 0-29: the samples hold NaN") == 1
        assert "| bad | nan | nan |" in Path("spoilt/results.md").read_text()
        before = Path("spoilt/cells.jsonl").read_text()
        assert evaluate(*flags, "--out=spoilt", "--solvers=ddim") == 0  # nothing is made again
        assert Path("spoilt/cells.jsonl").read_text() == before

    def test_cells_of_before_are_gone_on_with(self, inside) -> None:
        """They have neither sizes nor the precision."""
        flags = ("--nfe=3", "--seeds=0-19", "--out=of_before")
        assert evaluate(*flags, "--solvers=ddim") == 0
        old = [*records("of_before").values()]
        for record in old:
            del record["image_size"]
            for name in ("precision", "arithmetic", "reference_size"):
                del record["protocol"][name]
        shutil.rmtree("of_before/pictures")
        Path("of_before/cells.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in old))
        assert evaluate(*flags, "--solvers=ddim,heun") == 0
        assert records("of_before")["ddim", 3, "0-19"] == old[-1]
        assert "Images: 8x8, 1 channel." in Path("of_before/results.md").read_text()
        assert Path("of_before/results.html").read_text().count("no picture") == 1

    def test_images_that_sample_made_are_used_and_stay(self, inside, monkeypatch) -> None:
        flags = ("--nfe=3", "--seeds=0-29", "--batch_size=10")
        Path("given/images").mkdir(parents=True)
        out = "--out=given/images/any_name.npz"
        assert main(["sample", f"--ckpt_path={LAST}", *flags, "--solver=er_sde", "--order=2", "--nodes=0.5", out]) == 0
        with monkeypatch.context() as patch:
            patch.setattr("ersde_lit.sweeps.sweep.complete", None)  # nobody samples
            assert evaluate(*flags, "--out=given", "--solvers=er_sde:order=2:nodes=0.5") == 0
        assert evaluate(*flags, "--out=not_given", "--solvers=er_sde:order=2:nodes=0.5") == 0
        label = ("er_sde:order=2:nodes=0.5", 3, "0-29")
        assert records("given")[label]["scores"] == records("not_given")[label]["scores"]
        assert os.listdir("given/images") == ["any_name.npz"]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (["--ckpt_path=other.ckpt"], "differs in weights"),
            (["--features=classifier"], "differs in features (Means there, classifier features"),
            (["--data=ersde_lit.data.Digits:val_size=50"], "differs in statistics (1617 images"),
            (["--batch_size=7"], "batch_size (128 there, 7 here)"),
            (["--labels=3"], "labels (random there, 3 here)"),
            (["--labels=3", "--solvers=ddim"], "labels (random there, 3 here)"),  # cells that are not there yet
            (["--guide=other.ckpt", "--guide_scale=2", "--solvers=ddim"], "guidance (none there, guide"),
            (["--config=relabelled.yaml"], "solver (er_sde there, ddim here)"),
        ],
    )
    def test_another_evaluation_is_refused_in_its_folder(self, inside, capsys, change, said) -> None:
        if not Path("taken").exists():
            assert evaluate("--nfe=3", "--seeds=0-19", "--out=taken") == 0
            save(DiffusionModule(network(image_shape=(1, 8, 8), num_classes=10)), "other.ckpt")
            Path("relabelled.yaml").write_text("samplers: {default: {solver: ddim}}\n")
        before = {path: path.read_bytes() for path in Path("taken").rglob("*") if path.is_file()}
        capsys.readouterr()
        assert evaluate("--nfe=3", "--seeds=0-19", "--out=taken", *change) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.startswith("ersde_lit: evaluate: ")
        assert error.count("\n") == 1
        assert {path: path.read_bytes() for path in Path("taken").rglob("*") if path.is_file()} == before


def test_two_ranks_give_the_rows_of_one(inside, cache, one_bad) -> None:
    """61 images in blocks of 10: uneven shares; 5 batches of held-out images to two ranks."""
    command = ["evaluate", f"--ckpt_path={LAST}", DATA, "--features=classifier", "--solvers=default,heun", "--nfe=3",
               "--seeds", "0-60", "61-121", "--metrics=fid,kid,is,precision,recall", "--batch_size=10",
               "--accelerator=cpu", "--config=bad.yaml"]  # fmt: skip
    assert main([*command, "--out=one"]) == 0
    for path in cache.rglob("reference-*.npz"):
        path.unlink()  # measured again, by two
    done = run_on_ranks(ranks.__file__, "command", [*command, "--out=two", "--devices=2"])
    assert done.codes == [0, 0], done.said
    assert "".join(done.said).count("Inception Score of 61 samples") == 1
    one, both = records("one"), records("two")
    assert one.keys() == both.keys()
    for key in one:
        assert both[key]["scores"] == pytest.approx(one[key]["scores"], rel=1e-7, nan_ok=True), key  # singular
        assert both[key]["images"] == one[key]["images"]
    assert [key for key in both if math.isnan(both[key]["scores"]["fid"])] == [("bad", 3, "0-60")]


BAD = [
    (["--ckpt_path=absent.ckpt"], "there is nothing at --ckpt_path absent.ckpt"),
    (["--nfe=0"], "write numbers of network calls as in 5,10,20"),
    (["--nfe=few"], "write numbers of network calls"),
    (["--solvers=best"], "--solver best: choose from default, noisy, heun, er_sde"),
    (
        ["--solvers=er_sde:order=0"],
        "--solver er_sde:order=0: ",
    ),
    (["--solvers=er_sde:orders=2"], "orders"),
    (["--solvers=ddim:order=2"], "sampler ddim:order=2, NFE 5: sampler ddim has no option 'order'"),
    (["--solvers=:order=2"], "write it as in NAME or NAME:option=value"),
    (["--solvers=ddim:grid=edm", "--grids=edm,log_uniform"], "grid"),
    (["--grids=finest"], "--grid finest: choose from edm, log_uniform"),
    (["--config=no_class.yaml"], "of_a_user.Nothing"),
    (["--config=no_sampler.yaml"], "of_a_user.Means"),
    (["--config=absent.yaml"], "absent.yaml"),
    (["--seeds=0"], "at least two images"),
    (["--seeds", "0-9", "0-9"], "has seeds of another set"),
    (["--seeds", "0-9", "10-29"], "take sets of one size"),
    (["--seeds=9-0"], "runs downwards"),
    (["--metrics=fidd"], "no metric named 'fidd'"),
    (["--metrics=is"], "Inception Score needs class probabilities"),
    (["--features=inception", "--weights=text.txt"], "text.txt"),
    (["--features=efficientnet", "--weights=text.txt"], "text.txt"),
    (["--features=of_a_user.Absent"], "of_a_user.Absent"),
    (["--weights=text.txt"], "weights are Inception's"),
    (["--data=ersde_lit.data.Nothing"], "ersde_lit.data.Nothing"),
    (["--data=ersde_lit.data.Digits:val_size=5"], "val_size must be between 10 and 1000"),
    (["--data=text.yaml"], "has no entry `data`"),
    (["--data=absent.yaml"], "--data absent.yaml cannot be read"),
    (["--data=ersde_lit.data.FashionMNIST"], "the data's images are (1, 28, 28), the model's (1, 8, 8)"),
    (["--reference=absent.npz"], "absent.npz"),
    (["--reference=text.npz"], "text.npz"),
    (["--labels=10"], "no class 10"),
    (["--cfg_scale=2"], "trained with labels only"),
    (["--out=absent/folder"], "no folder"),
    (["--out=text.txt"], "text.txt is a file"),
    (["--images", "text.txt"], "leave them or --ckpt_path out"),
    (["--devices=0"], "--devices"),
    (["--step=3"], "unrecognized arguments"),
]


@pytest.fixture
def bad_files(inside) -> None:
    for name in ("text.txt", "text.npz", "text.yaml"):
        Path(name).write_text("text")
    Path("no_class.yaml").write_text("samplers: {mine: {class_path: of_a_user.Nothing}}\n")
    Path("no_sampler.yaml").write_text("samplers: {mine: {class_path: of_a_user.Means, init_args: {size: 3}}}\n")


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_gets_one_line_and_exit_code_2(bad_files, inside, capsys, options, message) -> None:
    before = set(os.listdir())
    assert evaluate("--nfe=5", "--seeds=0-9", "--out=new", *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("ersde_lit: evaluate: ")
    assert message in error
    assert error.count("\n") == 1
    assert set(os.listdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there is nothing to compare with: give --data or --reference"),
        ([DATA], "give --ckpt_path and --out, or --images"),
        ([DATA, f"--ckpt_path={LAST}"], "give --ckpt_path and --out"),
        (["--images", "mixed", DATA, MEANS, "--seeds=0-9"], "leave them or --seeds out"),
        (["--images", "mixed", DATA, MEANS, "--labels=3"], "leave them or --labels out"),
        (["--images", "mixed", DATA, MEANS, "--solvers=heun"], "leave them or --solvers out"),
        (["--images", "mixed", DATA, MEANS, "--cfg_scale=2"], "leave them or --cfg_scale out"),
        (["--images", "absent.zip", DATA, MEANS], "there is no file or folder absent.zip"),
        (["--images", "mixed", DATA, MEANS, "--out=text.txt"], "--out text.txt is a file; name a folder"),
        (["--images", "text.npz", DATA, MEANS], "text.npz"),
        (["--images", "text.txt", DATA, MEANS], "text.txt"),
        (["--images", "empty", DATA, MEANS], "empty holds no image"),
        (["--images", "floats.npz", DATA, MEANS], "not uint8"),
        (["--images", "one.npz", DATA, MEANS], "at least two images"),
        (["--images", "mixed", DATA, MEANS], "1.png is 9x9, and 0.png is 8x8"),
        (["--images", "cut", DATA, MEANS], "0.png cannot be used"),
        (["--features=classifier", "--reference=x.npz", "--images", "mixed"], "give --data"),
    ],
)
def test_bad_images_get_one_line_and_exit_code_2(bad_files, inside, capsys, options, message) -> None:
    for folder in ("empty", "mixed", "cut"):
        Path(folder).mkdir(exist_ok=True)
    for number in range(2):
        Image.fromarray(np.zeros((8 + number, 8 + number), np.uint8)).save(f"mixed/{number}.png")
    Path("cut/0.png").write_bytes(Path("mixed/0.png").read_bytes()[:40])
    np.savez("floats.npz", arr_0=np.zeros((4, 8, 8, 1), np.float32))
    np.savez("one.npz", arr_0=np.zeros((1, 8, 8, 1), np.uint8))
    assert main(["evaluate", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ersde_lit: evaluate: ")
    assert message in error
    assert error.count("\n") == 1


def test_help_lists_the_options(capsys) -> None:
    assert main(["evaluate", "--help"]) == 0
    said = capsys.readouterr().out
    for option in ("--solvers", "--nfe", "--seeds", "--grids", "--features", "--reference", "--images", "--best"):
        assert option in said


def test_the_samplers_of_the_table_exist() -> None:
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "fashion_mnist.py"))
    choices = SweepOptions([10, 20], samplers=tool["SAMPLERS"]).choices(VE())
    assert {choice.label for choice in choices} == set(tool["SAMPLERS"]) > set(tool["LEADING"])
    assert {choice.nfe for choice in choices if choice.label == "EDM Heun"} == {9, 19}
