import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from quick_start import fit
from tiny import network
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ersde_lit.cli import main
from ersde_lit.cli.options.sampler import OF_GRID, as_options
from ersde_lit.cli.restore import RestoreOptions
from ersde_lit.data.image_files import encode_png, read_image, read_pixels
from ersde_lit.denoisers import EDA, FieldNoise, NoiseLaw, PairNoise
from ersde_lit.sampling import restored
from ersde_lit.sampling.formats import read_meta
from ersde_lit.sampling.restoration import RESTORER
from ersde_lit.solvers import TableSampler, UniPC
from ersde_lit.training import DiffusionModule, load
from ersde_lit.training.averaged import SPEC_KEY

TESTS = Path(__file__).parents[1]
RESTORE = ["restore", "--ckpt_path=grey.ckpt", "--images=degraded", "--accelerator=cpu"]
NAMES = {"a.png": (16, 16, 8), "deep.png": (16, 16, 16), "small.png": (12, 13, 8), "sub/large.png": (40, 24, 8)}


def checkpoint(path: str, channels: int = 1, law: NoiseLaw | None = None, nan: bool = False, **changes) -> None:
    torch.manual_seed(0)
    net = network(image_shape=(channels, 16, 16), multipliers=(1, 1), **{"num_classes": 0, **changes})
    settings = {} if law is None else {"process": EDA(), "preconditioning": "eda", "prediction": "eda", "noise": law}
    module = DiffusionModule(net, **settings)
    for weight in module.parameters():
        weight.data += math.nan if nan else 0.05 * torch.randn_like(weight)
    torch.save({"state_dict": module.state_dict(), SPEC_KEY: module.spec}, path)


def write(folder: str, name: str, image: torch.Tensor, bits: int = 8) -> None:
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(image, bits))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("restore")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        checkpoint("grey.ckpt", law=FieldNoise())
        checkpoint("colour.ckpt", 3, PairNoise())
        checkpoint("nan.ckpt", law=FieldNoise(), nan=True)
        checkpoint("white.ckpt")
        for name, (height, width, bits) in NAMES.items():
            clean = 0.7 * (2 * torch.rand(1, height, width) - 1)
            write("clean", name, clean, bits)
            write("degraded", name, clean + 0.2 * torch.randn(clean.shape), bits)
        write("in_colour", "a.png", torch.rand(3, 20, 16), 16)
        Image.linear_gradient("L").resize((16, 20)).convert("RGB").save("in_colour/b.jpg")
    return folder


@pytest.fixture(autouse=True)
def inside(workplace, monkeypatch) -> None:
    monkeypatch.chdir(workplace)


def files(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def assert_pixels(path: str, expected: torch.Tensor, bits: int) -> None:
    Path("expected.png").write_bytes(encode_png(expected, bits))
    pixels, whole = read_pixels(path), read_pixels("expected.png")
    assert pixels.dtype == whole.dtype
    assert torch.equal(pixels, whole), path


def test_files_are_what_the_model_restores_of_each_image(capsys) -> None:
    """One tile at a time, so to the last bit."""
    assert main([*RESTORE, "--out=one", "--batch_size=1"]) == 0
    assert capsys.readouterr().out.startswith("4 images in one, NFE 5: 4 now, ")
    assert {*files("one")} == {*NAMES, "meta.json"}
    model = load("grey.ckpt")
    images = {name: read_image(Path("degraded") / name)[0] for name in NAMES}
    for name, bits in (("a.png", 8), ("deep.png", 16)):
        assert_pixels(f"one/{name}", model.restore(images[name][None])[0], bits)
    assert_pixels("one/small.png", model.restore(images["small.png"][None])[0], 8)
    first, last = model.restore(images["sub/large.png"][None, :, :16, :16]), images["sub/large.png"][None, :, 24:, 8:]
    Path("corner.png").write_bytes(encode_png(read_image("one/sub/large.png")[0][:, :12, :8], 8))
    assert_pixels("corner.png", first[0, :, :12, :8], 8)
    Path("corner.png").write_bytes(encode_png(read_image("one/sub/large.png")[0][:, 28:, 16:], 8))
    assert_pixels("corner.png", model.restore(last)[0, :, 4:, 8:], 8)


def test_colours_and_other_endings(capsys) -> None:
    command = ["restore", "--ckpt_path=colour.ckpt", "--images=in_colour", "--out=colours", "--accelerator=cpu"]
    assert main([*command, "--tile=32", "--nfe=2", "--solver=unipc2", "--batch_size=1"]) == 0
    assert {*files("colours")} == {"a.png", "b.png", "meta.json"}
    others = {"batch_size": 1, "precision": "fp32", "tile": "32x32", "overlap": 8, "seed": 0}
    assert read_meta("colours")["options"] == {"nfe": 2, "solver": "unipc2", **usual(2)[1], **others}
    sampler = TableSampler(UniPC(), RESTORER.grid)
    for name, bits in (("a.png", 16), ("b.jpg", 8)):
        expected = load("colour.ckpt").restore(read_image(f"in_colour/{name}")[0][None], sampler, 2)
        assert_pixels(f"colours/{name[0]}.png", expected[0], bits)


def test_clean_images_are_compared_with_the_files_and_a_repeated_command_does_no_more(capsys) -> None:
    command = [*RESTORE, "--clean=clean", "--out=compared"]
    for said in ("4 images in compared, ", "compared is finished: nothing to do\n"):
        assert main(command) == 0
        out = capsys.readouterr().out
        assert out.startswith(said)
        for kind, folder in (("degraded", "degraded"), ("restored", "compared")):
            psnr, ssim = map(float, re.search(rf"{kind}  PSNR (.*) dB, SSIM (.*)\n", out).groups())
            assert psnr == pytest.approx(mean(peak_signal_noise_ratio, folder), abs=0.006)
            assert ssim == pytest.approx(mean(structural_similarity_index_measure, folder), abs=0.0001)
    kept = files("compared")
    assert main([*RESTORE, "--out=compared", "--solver=ddim"]) == 2
    assert "differs in solver (er_sde there, ddim here)" in capsys.readouterr().err
    assert main([*RESTORE, "--out=compared", "--images=clean"]) == 2
    assert "differs in images (another file)" in capsys.readouterr().err
    assert files("compared") == kept
    assert main([*RESTORE, "--out=compared", "--solver=ddim", "--overwrite"]) == 0
    assert files("compared").keys() == kept.keys()


def mean(metric, folder: str) -> float:
    pairs = (((read_image(Path(of) / name)[0][None] + 1) / 2 for of in (folder, "clean")) for name in NAMES)
    return float(torch.stack([metric(*pair, data_range=1.0) for pair in pairs]).mean())


def test_noise_is_of_the_image_s_number(capsys) -> None:
    solver = "er_sde:noise_scale=sde"
    assert main([*RESTORE, "--out=noisy", f"--solver={solver}", "--seed=7", "--tile=40", "--batch_size=1"]) == 0
    model, names = load("grey.ckpt"), sorted(NAMES)
    sampler, _ = RestoreOptions("", "", "", solver=solver).sampler(model.ema_denoiser)
    for k, name in enumerate(names[:2]):
        image, bits = read_image(Path("degraded") / name)
        assert_pixels(f"noisy/{name}", model.restore(image[None], sampler, seeds=[7 + k])[0], bits)


def test_what_is_not_given_of_the_sampler_is_the_usual() -> None:
    denoiser, nfe = load("grey.ckpt").ema_denoiser, 4
    solver, grid = usual(nfe)

    def chosen(**options: str):
        return RestoreOptions("", "", "", nfe=nfe, **options).sampler(denoiser)

    sampler, named = chosen()
    assert named == {"nfe": nfe, **solver, **grid}
    for part, theirs in zip(sampler.table(denoiser, nfe)[:4], RESTORER.table(denoiser, nfe)[:4], strict=True):
        assert torch.equal(part, theirs)
    other = {"grid": "log_uniform", "sigma_min": 0.2}
    assert chosen(grid="log_uniform:sigma_min=0.2")[1] == {"nfe": nfe, **solver, **other}
    assert chosen(solver="ddim:sigma_min=0.2")[1] == {"nfe": nfe, "solver": "ddim", **grid, "sigma_min": 0.2}


def usual(nfe: int) -> tuple[dict, dict]:
    """The options of the usual sampler: its solver's and its grid's."""
    options = {name: value for name, value in as_options(RESTORER).items() if value is not False}
    grid = {name: value for name, value in options.items() if name in ("grid", *OF_GRID)}
    return {name: value for name, value in options.items() if name not in grid}, grid


KILLED = """
import os, signal, sys
from ersde_lit.cli import main
from ersde_lit.sampling.work import Work
save = Work.save
def killed(work, number, images):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    save(work, number, images)
Work.save = killed
main(sys.argv[1:])
"""


def started(*command: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(TESTS), *sys.path])
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": paths}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_two_ranks_make_the_same(capsys) -> None:
    how = [*RESTORE, "--batch_size=1", "--nfe=2"]
    assert main([*how, "--out=whole"]) == 0
    assert started("-c", KILLED, *how, "--out=parts").returncode == -signal.SIGKILL
    assert not Path("parts").exists()
    capsys.readouterr()
    assert main([*how, "--out=parts"]) == 0
    said = capsys.readouterr()
    assert "2 of 4 images are there: going on" in said.err
    assert "NFE 2: 2 now" in said.out
    assert files("parts") == files("whole")
    ended = started("-m", "commands_on_ranks", json.dumps([*how, "--out=shared", "--devices=2", "--clean=clean"]))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(" images in ") == ended.stdout.count("restored  PSNR") == 1
    assert files("shared") == files("whole")
    assert not [*Path().glob(".*.parts")]


def test_memory_for_few_tiles_suffices(monkeypatch, capsys) -> None:
    write("wide", "a.png", torch.rand(1, 16, 100))
    command = [*RESTORE, "--images=wide", "--nfe=1"]
    assert main([*command, "--out=wide_once"]) == 0
    sizes = []

    def small(denoiser, sampler, tiles, *rest):
        sizes.append(len(tiles))
        if len(tiles) > 2:
            raise MemoryError
        return restore(denoiser, sampler, tiles, *rest)

    restore = restored.restore
    monkeypatch.setattr(restored, "restore", small)
    assert main([*command, "--out=wide_twice", "--batch_size=8"]) == 0
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert "going on with 2" in capsys.readouterr().err
    once, twice = (read_pixels(f"wide_{of}/a.png").int() for of in ("once", "twice"))
    assert (once - twice).abs().max() <= 1


def bad_folders() -> None:
    for folder in ("empty", "broken", "twins", "unpaired", "cropped"):
        Path(folder).mkdir(exist_ok=True)
    (Path("broken") / "a.png").write_bytes((Path("degraded") / "a.png").read_bytes()[:60])
    for name in ("a.png", "a.bmp"):
        Image.new("L", (16, 16)).save(f"twins/{name}")
    write("unpaired", "other.png", torch.zeros(1, 4, 4))
    for name in NAMES:
        write("cropped", name, torch.zeros(1, 8, 8))
    for folder in ("single", "other"):
        write(folder, "a.png", torch.zeros(1, 16, 16))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--images=empty"], "empty"),
        (["--images=broken"], "broken/a.png cannot be used"),
        (["--images=twins"], "twins: a.bmp and a.png would both become a.png; rename one"),
        (["--images=in_colour"], "in_colour/a.png is in colour, and the network is for images grey"),
        (["--ckpt_path=colour.ckpt"], "degraded/a.png is grey, and the network is for images in colour"),
        (["--clean=unpaired"], "without a partner of the same name"),
        (["--clean=cropped"], "a.png is 16x16 (grey) in degraded but 8x8 (grey) in cropped"),
        (["--images=single", "--clean=broken"], "broken/a.png cannot be used"),
        (["--clean=degraded"], "are the same folder"),
        (["--ckpt_path=white.ckpt"], "take `sample`"),
        (["--ckpt_path=nan.ckpt"], "finite"),
        (["--ckpt_path=grey.ckpt/x"], "nothing at --ckpt_path"),
        (["--out=degraded"], "--out degraded and --images degraded lie in one another"),
        (["--out=degraded/sub/new"], "lie in one another"),
        (["--out=clean/new", "--clean=clean"], "--out clean/new and --clean clean lie in one another"),
        (["--out=other"], "--out other exists and is not known to be of this command"),
        (["--out=other", "--overwrite"], "is not a set of samples, so it stays"),
        (["--solver=er_sde:add_mean"], "add_mean is for starts of pure noise"),
        (["--solver=er_sde:sigma_max=0.5"], "the grid starts at 0.5"),
        (["--ckpt_path=colour.ckpt", "--images=in_colour", "--solver=ddpm"], "samplers with noise are wrong on it"),
        (["--solver=ddpm"], "a sampler with noise restores whole images only: take a larger --tile"),
        (["--overlap=16"], "--overlap 16: it must be smaller than a tile, 16x16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_restored_gets_one_line_and_nothing_is_written(capsys, options: list[str], line: str) -> None:
    bad_folders()
    before = files(".")
    assert main([*RESTORE, "--out=new", *options]) == 2
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert files(".") == before
    assert not Path(".new.parts").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "--seeds=0", "--out=x.npz"],
        ["evaluate", "--seeds=0-1", "--out=x", "--data=ersde_lit.data.Digits"],
        ["tune", "--nfe=4", "--out=x.tables", "--data=ersde_lit.data.Digits"],
        ["analyze", "--nfe=4", "--out=x"],
        ["sample", "--seeds=0", "--out=x.npz", "--ckpt_path=white.ckpt", "--guide=grey.ckpt", "--guide_scale=2"],
    ],
    ids=lambda command: command[0],
)
def test_commands_that_sample_refuse_a_model_that_restores(capsys, command: list[str]) -> None:
    assert main([command[0], "--ckpt_path=grey.ckpt", *command[1:]]) == 2
    said = capsys.readouterr().err
    assert "restores" in said
    assert said.count("\n") == 1
    assert not [*Path().glob("*x*.npz"), *Path().glob("x*")]


def test_fit_says_that_its_model_restores_and_predict_refuses_it(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    command = fit(
        "--trainer.callbacks=null", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=0", "--run=fields", "--model.noise=ersde_lit.denoisers.FieldNoise",
        "--model.process=ersde_lit.denoisers.EDA", "--model.preconditioning=eda", "--model.prediction=eda",
        "--model.density=null", "--model.label_dropout=0.1",
    )  # fmt: skip
    line = "restore --ckpt_path runs/fields/checkpoints/last.ckpt --images FOLDER --out restored"
    for _ in range(2):  # then there is nothing to do
        assert main(command) == 0
        assert capsys.readouterr().out.endswith(f"Next:\npython -m ersde_lit {line}\n")
    assert main(["predict", *command[1:]]) == 2
    assert "take `restore`\n" in capsys.readouterr().err
    assert not Path("runs/fields/predictions").exists()
    write("digits", "a.png", torch.rand(1, 8, 8))
    assert main([*line.split(), "--images=digits", "--accelerator=cpu"]) == 0
    assert {*files("restored")} == {"a.png", "meta.json"}


def test_images_that_are_equal_and_small_ones_leave_means(capsys) -> None:
    for k, side in enumerate((16, 16, 8)):
        image = torch.rand(1, side, side)
        for folder in ("same_degraded", "same_clean"):
            write(folder, f"{k}.png", image)
    assert main([*RESTORE, "--images=same_degraded", "--clean=same_clean", "--out=same", "--nfe=1"]) == 0
    assert "degraded  PSNR 100.00 dB, SSIM 1.0000 of 2 images" in capsys.readouterr().out


def test_a_restored_file_may_not_have_the_name_of_a_folder(capsys) -> None:
    write("clash", "a.png/b.png", torch.zeros(1, 16, 16))
    Image.new("L", (16, 16)).save("clash/a.jpg")
    assert main([*RESTORE, "--images=clash", "--out=clashed"]) == 2
    assert "would both become a.png; rename one" in capsys.readouterr().err
    assert not Path("clashed").exists()


def test_large_images_are_in_memory_one_at_a_time(monkeypatch, capsys) -> None:
    for k in range(3):
        write("large", f"{k}.png", torch.rand(1, 40, 40))
    blocks = []
    monkeypatch.setattr(restored.Restoration, "images", noting(restored.Restoration.images, blocks))
    assert main([*RESTORE, "--images=large", "--out=larger", "--nfe=1", "--batch_size=9"]) == 0  # 9 tiles an image
    assert blocks == [([0], 9), ([1], 9), ([2], 9)]


def noting(images, blocks: list):
    def noted(self, seeds, batch_size, *rest):
        blocks.append(([*seeds], batch_size))
        return images(self, seeds, batch_size, *rest)

    return noted


def test_the_digest_is_of_names_sizes_bits_and_pixels() -> None:
    digests = set()
    for number, (name, side, bits, grey) in enumerate(
        [("a", (8, 16), 8, 0), ("b", (8, 16), 8, 0), ("a", (16, 8), 8, 0), ("a", (8, 16), 8, 1), ("a", (8, 8), 16, 0)]
    ):
        write(f"digest{number}", f"{name}.png", torch.full((1, *side), float(grey)), bits)
        digests.add(restored.Degraded.read(Path(f"digest{number}"), [f"{name}.png"], 1).digest)
    assert len(digests) == 5


def test_files_that_are_no_images_are_named(capsys) -> None:
    write("with_others", "a.png", torch.zeros(1, 16, 16))
    Path("with_others/scan.nii").write_text("a volume")
    assert main([*RESTORE, "--images=with_others", "--out=of_others"]) == 0
    assert "note: 1 file left out, hidden or of no known kind of image: scan.nii" in capsys.readouterr().out
