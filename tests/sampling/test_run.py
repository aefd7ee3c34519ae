import logging
import os
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import network

from ersde_lit.denoisers import Denoiser
from ersde_lit.progress import progress
from ersde_lit.ranks import CHATTY, Ranks
from ersde_lit.sampling import run
from ersde_lit.sampling.formats import format_of, read_meta
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.images import quantise
from ersde_lit.sampling.run import Job, complete, trajectory
from ersde_lit.sampling.views import MARK, Preview, check_view
from ersde_lit.sampling.work import Work
from ersde_lit.solvers import default

SEEDS = range(10)
META = {"seeds": "0-9", "options": {}, "checkpoints": {}, "paths": {}}


class Small(Denoiser):
    """Has memory for so many images at a time only."""

    fits = 100
    error: type[Exception] = torch.OutOfMemoryError
    text = "CUDA out of memory"

    def forward(self, y, lam, labels=None, augment=None):
        self.sizes.append(len(y))
        if len(y) > self.fits:
            raise self.error(self.text)
        return super().forward(y, lam, labels, augment)


@pytest.fixture
def denoiser() -> Small:
    torch.manual_seed(0)
    small = Small(network()).eval()
    torch.nn.init.normal_(small.network.leave[-1].weight)  # zero at first: nothing would depend on the network
    small.sizes = []
    return small


def work_of(out, batch_size: int = 4) -> Work:
    return Work(out, format_of(out), SEEDS, batch_size, META)


def images_of(path) -> np.ndarray:
    with np.load(path) as file:
        return file["arr_0"].astype(int)


def test_images_are_those_of_generate(tmp_path, denoiser) -> None:
    report = complete(work_of(tmp_path / "a.npz"), Job(denoiser, default(3), 3), Ranks())
    expected = torch.cat([quantise(b.images) for b in generate(denoiser, default(3), SEEDS, 3, batch_size=4)])
    assert np.array_equal(images_of(tmp_path / "a.npz"), expected.movedim(1, -1).numpy())
    assert (report.images, report.memory > 1e6) == (10, True)
    assert os.listdir(tmp_path) == ["a.npz"]
    assert "cpu" in read_meta(tmp_path / "a.npz")["device"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory"),
        (RuntimeError, "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        (MemoryError, ""),
    ],
)
def test_a_block_too_large_is_halved_once_and_for_all(tmp_path, denoiser, capsys, error, text) -> None:
    denoiser.error, denoiser.text, denoiser.fits = error, text, 1
    complete(work_of(tmp_path / "a.npz"), Job(denoiser, default(1), 1), Ranks())
    assert denoiser.sizes == [4, 2, *[1] * 10]
    assert capsys.readouterr().err.count("out of memory with") == 2
    assert read_meta(tmp_path / "a.npz")["halved_to"] == 1
    denoiser.fits = 100
    complete(work_of(tmp_path / "b.npz"), Job(denoiser, default(1), 1), Ranks())
    assert np.abs(images_of(tmp_path / "a.npz") - images_of(tmp_path / "b.npz")).max() <= 1


def test_what_was_halved_stays_so_when_resumed(tmp_path, denoiser) -> None:
    denoiser.fits = 2
    whole, broken = (Work(tmp_path / name, format_of(name), SEEDS, 4, META) for name in ("a.npz", "b.npz"))
    complete(whole, Job(denoiser, default(2), 2), Ranks())
    save = broken.save

    def die_at_1(number, images):
        if number == 1:
            raise KeyboardInterrupt
        save(number, images)

    broken.save = die_at_1
    with pytest.raises(KeyboardInterrupt):
        complete(broken, Job(denoiser, default(2), 2), Ranks())
    broken.lock.release()
    denoiser.sizes.clear()
    complete(work_of(tmp_path / "b.npz"), Job(denoiser, default(2), 2), Ranks())
    assert denoiser.sizes == [2] * 6  # of two blocks, in halves of two calls each; the last block has but two
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_not_even_one_fits(tmp_path, denoiser) -> None:
    denoiser.fits = 0
    with pytest.raises(ValueError, match="out of memory with one image at a time"):
        complete(work_of(tmp_path / "a.npz"), Job(denoiser, default(1), 1), Ranks())


def test_other_errors_are_not_taken_for_want_of_memory(tmp_path, denoiser) -> None:
    denoiser.fits, denoiser.error, denoiser.text = 0, RuntimeError, "a bug"
    with pytest.raises(RuntimeError, match="a bug"):
        complete(work_of(tmp_path / "a.npz"), Job(denoiser, default(1), 1), Ranks())


def test_autocast_reaches_the_network_and_not_the_state(tmp_path, denoiser) -> None:
    seen = {}
    denoiser.network.register_forward_hook(lambda module, inputs, output: seen.update(output=output.dtype))
    images = [
        Job(denoiser, default(2), 2, dtype=dtype).images(SEEDS, 10, lambda i, lam, y, x0: seen.update(y=y.dtype))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert seen == {"output": torch.bfloat16, "y": torch.float32}
    assert not torch.equal(*images)
    assert (images[0].int() - images[1].int()).abs().float().mean() < 3


def test_an_orphan_stops_before_it_writes(tmp_path, denoiser, monkeypatch) -> None:
    parents = iter([7, 7, 1])
    monkeypatch.setattr(run.os, "getppid", lambda: next(parents))
    work = work_of(tmp_path / "a.npz")
    missing = work.begin()
    with pytest.raises(SystemExit):
        run._sample(work, missing, Job(denoiser, default(1), 1), local_rank=1, preview=None)
    assert work.done() == {0}


class TestViews:
    def test_the_preview_ends_with_the_images(self, tmp_path, denoiser) -> None:
        path = tmp_path / "preview.png"
        complete(work_of(tmp_path / "a.npz"), Job(denoiser, default(3), 3), Ranks(), Preview(path, images=4))
        picture = np.asarray(Image.open(path)).astype(int)
        assert picture.shape == (34, 68)  # the last block: 2 images, enlarged to 32
        assert np.abs(picture[1:33:8, 1:33:8] - images_of(tmp_path / "a.npz")[8, ..., 0]).max() == 0

    def test_the_preview_shows_what_is_being_sampled(self, tmp_path) -> None:
        seen = Preview(tmp_path / "a.png", images=1, seconds=0)
        for step, grey in enumerate((-1.0, 1.0)):
            seen(step, torch.tensor(1.0), torch.zeros(2, 1, 32, 32), torch.full((2, 1, 32, 32), grey))
            assert Image.open(tmp_path / "a.png").getpixel((5, 5)) == (0, 255)[step]
        rare = Preview(tmp_path / "b.png", seconds=1000)
        for grey in (-1.0, 1.0):
            rare(0, torch.tensor(1.0), torch.zeros(1, 1, 32, 32), torch.full((1, 1, 32, 32), grey))
        assert Image.open(tmp_path / "b.png").getpixel((5, 5)) == 0

    def test_a_trajectory_ends_in_the_images(self, tmp_path, denoiser) -> None:
        job = Job(denoiser, default(5), 5)
        trajectory(job, SEEDS[:3], tmp_path / "t.png")
        sheet = np.asarray(Image.open(tmp_path / "t.png"))
        assert sheet.shape == (3 * 34, 5 * 34)
        last = job.images(SEEDS[:3], 3)
        for row in range(3):
            tile = sheet[34 * row + 1 : 34 * row + 33 : 8, 34 * 4 + 1 : 34 * 4 + 33 : 8]
            assert np.array_equal(tile, last[row, 0].numpy())

    def test_only_views_are_replaced(self, tmp_path) -> None:
        Preview(tmp_path / "view.png").show(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
        assert Image.open(tmp_path / "view.png").info.items() >= MARK.items()
        check_view("preview", tmp_path / "view.png", (1, 8, 8))
        check_view("preview", tmp_path / "new.png", (3, 8, 8))
        Image.new("L", (8, 8)).save(tmp_path / "cat.png")
        (tmp_path / "text.png").write_text("no picture")
        for name, shape, words in [
            ("cat.png", (1, 8, 8), "another picture"),
            ("text.png", (1, 8, 8), "another picture"),
            ("a.jpg", (1, 8, 8), "ends in .png"),
            ("absent/a.png", (1, 8, 8), "no folder"),
            ("a.png", (2, 8, 8), "1 or 3 channels"),
        ]:
            with pytest.raises(ValueError, match=words):
                check_view("preview", tmp_path / name, shape)

    def test_a_disk_that_fails_is_the_views(self, tmp_path, denoiser, monkeypatch) -> None:
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("ersde_lit.sampling.views.save_png", full)
        monkeypatch.setattr("ersde_lit.sampling.run.save_png", full)
        with pytest.raises(ValueError, match=r"^--preview .*view.png cannot be written: No space left"):
            Preview(tmp_path / "view.png").show(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
        with pytest.raises(ValueError, match=r"^--trajectory .*how.png cannot be written: No space left"):
            trajectory(Job(denoiser, default(2), 2), SEEDS[:1], tmp_path / "how.png")


class TestRanks:
    def test_alone_nothing_is_gathered(self) -> None:
        assert Ranks().gather("value") == ["value"]
        with pytest.raises(ValueError, match="as it was"), Ranks().fail_together():
            raise ValueError("as it was")

    @pytest.mark.parametrize(("rank", "ends"), [(0, ValueError), (1, SystemExit)])
    def test_the_first_rank_speaks_for_all(self, rank, ends, monkeypatch) -> None:
        def all_gather(values, value):
            values[:] = [None, ValueError("disk full on rank 1")]

        monkeypatch.setattr("torch.distributed.all_gather_object", all_gather)
        with pytest.raises(ends), Ranks(rank, 2).fail_together():
            pass

    @pytest.mark.parametrize(("rank", "ends"), [(0, ValueError), (1, SystemExit)])
    def test_a_rank_that_died_is_one_line(self, rank, ends, monkeypatch) -> None:
        def broken(values, value):
            raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")

        monkeypatch.setattr("torch.distributed.all_gather_object", broken)
        with pytest.raises(ends) as ended:
            Ranks(rank, 2).gather(None)
        assert rank or "run the same command again" in str(ended.value)

    def test_an_accelerator_that_is_absent_is_one_line(self) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is one")
        with pytest.raises(ValueError, match=r"^--accelerator cuda --devices 1: ") as error:
            Ranks.start("cuda")
        assert "\n" not in str(error.value)


def test_others_may_speak_again_once_ranks_have_begun() -> None:
    """`fit` in the same process says how a step is shared through one of these loggers."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in CHATTY]
    before = [logger.level for logger in loggers]
    Ranks.start("cpu")
    assert [logger.level for logger in loggers] == before


def test_no_bar_without_a_terminal(capsys) -> None:
    threads = threading.active_count()
    with progress(lambda: 1, 2):
        assert threading.active_count() == threads
    assert capsys.readouterr() == ("", "")


def test_the_bar_counts_what_is_done(capsys, monkeypatch) -> None:
    from rich.console import Console

    from ersde_lit import progress as module

    monkeypatch.setattr(module, "console", Console(stderr=True, force_terminal=True, width=80))
    asked = threading.Event()
    counts = iter([100, 150])

    def done() -> int:
        count = next(counts, 150)
        if count == 150:
            asked.set()
        return count

    with progress(done, 200, every=0.01):
        assert asked.wait(10)
    assert "150/200" in capsys.readouterr().err
