"""Zip archives from strangers: paths, sizes and doubles are refused before anything is read."""

import warnings
import zipfile

import pytest

from ersde_lit.untrusted.archives import open_zip


def _archive(path, *entries, size=10):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        warnings.simplefilter("ignore")  # of entries that are there twice
        for name in entries:
            file.writestr(name, b"0" * size)
    return path


def test_a_harmless_archive_opens(tmp_path):
    with open_zip(_archive(tmp_path / "a.zip", "a/b.png", "c..d/e", "f g.json", "12:30:00.png")) as archive:
        assert archive.read("a/b.png") == b"0" * 10


@pytest.mark.parametrize("name", ["../up.png", "a/../../up.png", "/etc/x.png", "..\\up.png", "C:/x.png", "C:\\x.png"])
def test_a_path_out_of_the_archive_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="leads out"):
        open_zip(_archive(tmp_path / "a.zip", "fine.png", name))


def test_an_entry_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path):
    path = _archive(tmp_path / "a.zip", "bomb.png", size=5000)
    with pytest.raises(ValueError, match=r"bomb\.png.*5,000 bytes"):
        open_zip(path, largest=4999)
    with open_zip(path, largest=5000):
        pass


def test_an_entry_that_is_there_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        open_zip(_archive(tmp_path / "a.zip", "a.png", "b.png", "a.png"))


def test_what_is_no_zip_is_said(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match="no zip"):
        open_zip(tmp_path / "a.zip")
