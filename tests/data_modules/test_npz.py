import io
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy

from ersde_lit.data.npz import load_array, open_array


@pytest.mark.parametrize(
    "array",
    [np.arange(6).reshape(2, 3), np.asfortranarray(np.ones((3, 2), np.float32)), np.zeros((0, 4)), np.array("words"),
     np.array(7), np.array(["a", "bcd"]), np.arange(3, dtype=">u2")],
)  # fmt: skip
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_gives_what_numpy_saved(tmp_path, array, save):
    save(tmp_path / "set.npz", x=array)
    found = load_array(tmp_path / "set.npz", "x")
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert np.array_equal(found, array)


def claiming(path, shape, content=bytes(100)):
    head = io.BytesIO()
    npy.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", head.getvalue() + content)
    return path


@pytest.mark.parametrize("shape", [(10**15,), (10**6, 10**9), (2,)])
def test_a_header_that_claims_other_bytes_than_there_are_is_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="by its header, 100 in the file"):
        load_array(claiming(tmp_path / "set.npz", shape), "x")


def test_an_array_larger_than_asked_for_is_refused_and_can_be_streamed(tmp_path):
    path = claiming(tmp_path / "set.npz", (1000,), bytes(8000))
    with pytest.raises(ValueError, match="8,000 bytes, and at most 4,000"):
        load_array(path, "x", largest=4000)
    with open_array(path, "x") as array:
        assert (array.shape, len(array.file.read())) == ((1000,), 8000)


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "set.npz", x=np.array([{}, None]))
    with pytest.raises(ValueError, match="pickled"):
        load_array(tmp_path / "set.npz", "x")


def test_an_absent_array_is_named_with_those_that_are_there(tmp_path):
    np.savez(tmp_path / "set.npz", x=np.ones(3), z=np.ones(3))
    with pytest.raises(ValueError, match=r"set.npz has no array y, only x, z$"):
        load_array(tmp_path / "set.npz", "y")
