import errno
import os
import re
import resource
import stat
import subprocess
import zipfile
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import pytest

from ersde_lit.files import check_apart, check_out
from ersde_lit.sampling.description import differences
from ersde_lit.sampling.formats import format_of
from ersde_lit.sampling.views import check_view
from ersde_lit.sampling.work import Work

SEEDS = [3, 4, 5, 1000, 17]
META = {
    "seeds": "3-5,1000,17",
    "options": {"nfe": 20, "solver": "er_sde"},
    "checkpoints": {"ckpt_path": "ab12"},
    "paths": {"ckpt_path": "a.ckpt"},
}
OUTS = ["samples", "samples.npz", "samples.zip", "samples.png"]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)


def work_of(out: Path, nfe: int = 20, overwrite: bool = False) -> Work:
    meta = {**META, "options": {**META["options"], "nfe": nfe}}
    return Work(out, format_of(out), SEEDS, 2, meta, overwrite)


def make(work: Work, *numbers: int, images: np.ndarray = IMAGES) -> None:
    for number in numbers:
        work.save(number, work.format.encode(images[2 * number : 2 * number + 2], work.block(number)))


def complete(out: Path, images: np.ndarray = IMAGES, **options) -> Work:
    work = work_of(out, **options)
    assert not work.finished()
    make(work, *work.begin(), images=images)
    work.publish([0, 1, 2, 3, 4])
    return work


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(params=OUTS)
def out(request, tmp_path) -> Path:
    return tmp_path / request.param


@pytest.fixture
def reference(tmp_path_factory, request, out) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    folder = tmp_path_factory.mktemp("reference")
    complete(folder / out.name)
    return tree(folder)


class TestCourse:
    def test_blocks_make_the_whole_and_nothing_else_stays(self, out) -> None:
        work = work_of(out)
        assert not work.finished()
        assert work.begin() == [0, 1, 2]
        make(work, 2, 0)
        assert (work.done(), work.images_done()) == ({0, 2}, 3)
        assert not out.exists()
        make(work, 1)
        assert work.images_done() == 5
        work.publish([0, 1, 2, 3, 4], device="cpu")
        assert os.listdir(out.parent) == [out.name]
        assert work_of(out).finished()

    def test_a_killed_run_goes_on(self, out, reference) -> None:
        work = work_of(out)
        work.begin()
        make(work, 1)
        work.lock.release()  # as the system does when a process is killed
        for name in ("000000.zip.123.tmp", "meta.json.9.tmp", "whole.npz", ".whole.png.8.tmp"):
            (work.folder / name).write_bytes(b"torn")
        (work.folder / "whole").mkdir()
        (work.folder / "whole" / "000003.png").write_bytes(b"torn")
        again = work_of(out)
        assert not again.finished()
        assert again.begin() == [0, 2]
        assert sorted(os.listdir(again.folder)) == ["000001.zip", "lock", "meta.json"]
        make(again, 0, 2)
        again.publish([0, 1, 2, 3, 4])
        assert tree(out.parent) == reference

    def test_killed_between_its_first_two_steps(self, out, reference) -> None:
        work = work_of(out)
        work.folder.mkdir()
        (work.folder / "meta.json").write_text("{")
        (work.folder / "000001.zip").write_bytes(b"of whom?")
        complete(out)
        assert tree(out.parent) == reference

    def test_killed_between_its_last_two_steps(self, out, reference) -> None:
        complete(out)
        again = work_of(out)
        again.folder.mkdir()
        (again.folder / "000001.zip").write_bytes(b"left over")
        assert again.finished()
        again.clean()
        assert tree(out.parent) == reference

    def test_a_damaged_block_is_made_anew(self, out, reference) -> None:
        work = work_of(out)
        make(work, *work.begin())
        block = work.folder / "000001.zip"
        damaged = bytearray(block.read_bytes())
        damaged[len(damaged) // 3] ^= 1
        block.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"000001.zip is damaged and was removed: run the same command again"):
            work.publish([0, 1, 2, 3, 4])
        work.lock.release()
        assert not out.exists()
        assert work_of(out).begin() == [1]

    @pytest.mark.parametrize("planted", ["../../../EVIL.png", "/tmp/EVIL.png", "000099.png", "a/../../EVIL.png"])
    def test_a_planted_block_writes_nothing_of_its_own(self, out, planted) -> None:
        work = work_of(out)
        make(work, *work.begin())
        with zipfile.ZipFile(work.folder / "000001.zip", "w") as file:
            file.writestr(planted, b"evil")
        before = {*out.parents[1].rglob("*")}
        with pytest.raises(ValueError, match=r"000001.zip is damaged and was removed"):
            work.publish([0, 1, 2, 3, 4])
        work.lock.release()
        assert not out.exists()
        assert {*out.parents[1].rglob("*")} == before - {work.folder / "000001.zip"}

    def test_a_planted_name_beside_the_right_ones_is_refused(self, out) -> None:
        work = work_of(out)
        make(work, *work.begin())
        with zipfile.ZipFile(work.folder / "000001.zip", "a") as file:
            file.writestr("../EVIL.png", b"evil")
        with pytest.raises(ValueError, match=r"000001.zip is damaged and was removed"):
            work.publish([0, 1, 2, 3, 4])
        work.lock.release()

    def test_a_planted_bomb_is_not_unpacked(self, out) -> None:
        work = work_of(out)
        make(work, *work.begin())
        names = work.format.names(work.block(1))
        with zipfile.ZipFile(work.folder / "000001.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name in names:
                file.writestr(name, bytes(10**6))
        with pytest.raises(ValueError, match=r"000001.zip is damaged and was removed"):
            work.publish([0, 1, 2, 3, 4])
        work.lock.release()

    def test_two_at_once_are_refused(self, out) -> None:
        first, second = work_of(out), work_of(out)
        first.begin()
        make(first, 0)
        assert not second.finished()
        with pytest.raises(ValueError, match="another process is working on it"):
            second.begin()
        second.clean()
        assert first.done() == {0}

    def test_memory_found_too_small_is_remembered(self, out) -> None:
        work, other_rank = work_of(out), work_of(out)
        work.begin()
        assert other_rank.chunk == 2
        assert work.shrink(1)
        assert not other_rank.shrink(1)  # known: said once
        assert other_rank.chunk == 1
        work.lock.release()
        assert work_of(out).begin() == [0, 1, 2]
        assert work_of(out).chunk == 1


class TestInTheWay:
    def test_samples_of_another_command_are_refused_by_name(self, out) -> None:
        complete(out)
        before = tree(out.parent)
        with pytest.raises(ValueError, match=r"exists and differs in nfe \(20 there, 10 here\); .*--overwrite"):
            work_of(out, nfe=10).finished()
        assert tree(out.parent) == before

    def test_an_unfinished_run_of_another_command_is_refused_by_name(self, out) -> None:
        work = work_of(out)
        work.begin()
        make(work, 0)
        with pytest.raises(
            ValueError, match=r"an unfinished run .* differs in nfe \(20 there, 10 here\); .*--overwrite"
        ):
            work_of(out, nfe=10).finished()
        assert work.done() == {0}

    def test_what_had_not_begun_is_in_nobodys_way(self, out) -> None:
        work = work_of(out)
        work.begin()
        work.lock.release()
        complete(out, nfe=10)
        assert work_of(out, nfe=10).finished()

    def test_overwrite_drops_an_unfinished_run(self, out, tmp_path) -> None:
        work = work_of(out)
        work.begin()
        make(work, 0, images=255 - IMAGES)
        work.lock.release()
        complete(out, nfe=10, overwrite=True)
        (tmp_path / "fresh").mkdir()
        complete(tmp_path / "fresh" / out.name, nfe=10)
        fresh = tree(tmp_path / "fresh")
        assert {name: data for name, data in tree(out.parent).items() if not name.startswith("fresh")} == fresh

    def test_overwrite_replaces_at_the_end(self, out) -> None:
        complete(out)
        before = tree(out) if out.is_dir() else out.read_bytes()
        work = work_of(out, nfe=10, overwrite=True)
        assert not work.finished()
        make(work, *work.begin(), images=255 - IMAGES)
        assert (tree(out) if out.is_dir() else out.read_bytes()) == before
        work.publish(None)
        assert os.listdir(out.parent) == [out.name]
        assert work_of(out, nfe=10).finished()

    def test_overwrite_of_the_same_does_nothing(self, out) -> None:
        complete(out)
        assert work_of(out, overwrite=True).finished()

    def test_overwrite_that_fails_leaves_the_old(self, out, monkeypatch) -> None:
        complete(out)
        before = tree(out.parent)
        work = work_of(out, nfe=10, overwrite=True)
        make(work, *work.begin())
        rename = Path.rename

        def full(self, target):
            if self.name.startswith("whole"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", full)
            patch.setattr(Path, "replace", full)
            with pytest.raises(ValueError, match="No space left on device"):
                work.publish(None)
        assert {name: data for name, data in tree(out.parent).items() if ".parts" not in name} == before
        work.publish(None)
        assert work_of(out, nfe=10).finished()

    def test_what_appears_meanwhile_stays(self, out) -> None:
        work = work_of(out)
        make(work, *work.begin())
        out.write_text("somebody else's")
        with pytest.raises(ValueError, match="exists and is not known to be of this command"):
            work.publish(None)
        assert out.read_text() == "somebody else's"
        assert work.done() == {0, 1, 2}

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_folder_for_a_file_or_the_reverse_stays(self, out, overwrite) -> None:
        out.write_text("") if out.suffix == "" else out.mkdir()
        with pytest.raises(ValueError, match=r"exists and is not .*; choose another name"):
            work_of(out, overwrite=overwrite).finished()
        assert os.listdir(out.parent) == [out.name]


@pytest.mark.parametrize("names", [[], ["thesis.tex", "meta.json"], ["000000.png"], ["meta.json", "sub/a.doc"]])
def test_overwrite_takes_no_folder_but_its_own(tmp_path, names) -> None:
    (tmp_path / "a").mkdir()
    for name in names:
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).touch()
    with pytest.raises(ValueError, match="not a set of samples"):
        work_of(tmp_path / "a", overwrite=True).finished()


class TestDisk:
    def test_a_disk_that_refuses_a_block_is_one_line(self, out, reference) -> None:
        """RLIMIT_FSIZE makes any file above it fail, as a full disk would (Python ignores the signal)."""
        work = work_of(out)
        work.begin()
        make(work, 0)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(ValueError, match=r"cannot be written: File too large$"):
                make(work, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert sorted(os.listdir(work.folder)) == ["000000.zip", "lock", "meta.json"]
        make(work, 1, 2)
        work.publish([0, 1, 2, 3, 4])
        assert tree(out.parent) == reference

    def test_a_disk_that_is_full_in_the_end_costs_nothing(self, out, reference) -> None:
        work = work_of(out)
        make(work, *work.begin())
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(ValueError, match=r"cannot be written: File too large$"):
                work.publish([0, 1, 2, 3, 4])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not out.exists()
        assert sorted(os.listdir(work.folder)) == ["000000.zip", "000001.zip", "000002.zip", "lock", "meta.json"]
        work.publish([0, 1, 2, 3, 4])
        assert tree(out.parent) == reference

    def test_a_full_file_system(self, out, reference) -> None:
        small = out.parent / "small"
        small.mkdir()
        if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small]).returncode:
            pytest.skip("only root can mount a small file system")
        try:
            work = work_of(small / out.name)
            missing = work.begin()
            filler = small / "filler"
            fill(filler)
            with pytest.raises(ValueError, match=r"cannot be written: No space left on device$"):
                make(work, *missing)
            work.lock.release()
            filler.unlink()
            again = work_of(small / out.name)
            make(again, *again.begin())
            again.publish([0, 1, 2, 3, 4])
            assert tree(small) == reference
        finally:
            subprocess.run(["umount", "--lazy", small], check=True)

    def test_ordinary_permissions(self, out) -> None:
        complete(out)
        (out.parent / "touched").touch()
        mode = stat.S_IMODE((out.parent / "touched").stat().st_mode)
        assert stat.S_IMODE(out.stat().st_mode) & 0o666 == mode


def fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize("out", ["missing/a.npz", "file/a.npz", "file/deep/a", "x" * 300, "", "/"])
def test_bad_targets_are_one_line(tmp_path, monkeypatch, out) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^--out ") as error:
        check_out(out)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("outputs", "clash"),
    [
        ({"out": "a.png", "preview": "b.png"}, None),
        ({"out": "a.png", "preview": "./sub/../a.png"}, "--preview ./sub/../a.png is also --out"),
        ({"out": "a.png", "preview": "b.png", "trajectory": "b.png"}, "--trajectory b.png is also --preview"),
        ({"out": "link.ckpt"}, "--out link.ckpt is also --ckpt_path"),
    ],
)
def test_files_of_a_command_are_different_ones(tmp_path, monkeypatch, outputs, clash) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link.ckpt").symlink_to("model.ckpt")
    with nullcontext() if clash is None else pytest.raises(ValueError, match=re.escape(clash)):
        check_apart(outputs, {"ckpt_path": "model.ckpt"})


def test_unwritable_parent(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ValueError, match=r"--out .* is not writable"):
        check_out(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"--preview .* is not writable"):
        check_view("preview", tmp_path / "a.png", (1, 8, 8))


def test_differences_are_named_and_few() -> None:
    other = {**META, "paths": {}, "versions": {"torch": "1"}, "device": "abacus"}
    assert differences(META, other) == ""
    other["checkpoints"] = {"ckpt_path": "cd34", "guide": "ab12"}
    assert differences(META, other) == "ckpt_path (another file), guide (another file)"
    other["options"] = {"nfe": 20, "solver": "er_sde", "cfg_scale": 2.0}
    other["seeds"] = ",".join(map(str, range(0, 1000, 2)))
    text = differences(META, other)
    assert text.startswith("seeds (3-5,1000,17 there, 0,2,4,")
    assert text.endswith("... here), ckpt_path (another file), cfg_scale (none there, 2.0 here), ...")
    assert len(text) < 200
