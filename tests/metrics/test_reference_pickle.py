import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ersde_lit.metrics.features import Features
from ersde_lit.metrics.reference import read_reference, read_statistics


class Flat(Features):
    """Four numbers of each image, as if they were Inception's."""

    num_features = 4


RNG = np.random.default_rng(0)
MU, SIGMA = RNG.normal(size=4), np.cov(RNG.normal(size=(4, 50)))
STATISTICS = {
    "num_images": 50_000,
    "fid": {"mu": MU, "sigma": SIGMA},
    "fd_dinov2": {"mu": np.zeros(6), "sigma": np.eye(6)},
}


def written(path: Path, content: object, protocol: int = 4, core: str = "") -> Path:
    """A pickle; with `core`, by the name that numpy's own core has in one version of it or another."""
    data = pickle.dumps(content, protocol)
    if core and protocol < 4:  # names in lines
        data = data.replace(b"cnumpy._core.", b"cnumpy.core.").replace(b"cnumpy.core.", f"cnumpy.{core}.".encode())
    elif core:  # names with their length
        for part in ("multiarray", "numeric"):
            names = [f"numpy.{name}.{part}" for name in ("core", "_core")]
            for name in names:
                new = f"numpy.{core}.{part}"
                before, after = (b"\x8c" + bytes([len(n)]) + n.encode() for n in (name, new))
                data = data.replace(before, after)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_as_both_numpys_pickle_them(tmp_path, protocol: int, core: str) -> None:
    found = read_statistics(written(tmp_path / "ref.pkl", STATISTICS, protocol, core))
    assert np.array_equal(found["mu"], MU)
    assert np.array_equal(found["sigma"], SIGMA)
    assert found["num_images"] == 50_000


def test_statistics_are_those_of_the_features(tmp_path) -> None:
    """FD-DINOv2's where the features are DINOv2's."""

    class Six(Features):
        num_features, in_edm2_files = 6, "fd_dinov2"

    path = written(tmp_path / "ref.pkl", STATISTICS)
    assert torch.equal(read_reference(path, Six()).statistics.cov, torch.eye(6, dtype=torch.float64))
    assert read_reference(path, Flat()).statistics.mean.tolist() == MU.tolist()


@pytest.mark.parametrize(
    "sigma",
    [np.asfortranarray(SIGMA), SIGMA.astype(np.float32), SIGMA[::-1, ::-1].T],
    ids=["by columns", "float32", "a view"],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_other_layouts(tmp_path, protocol: int, sigma: np.ndarray) -> None:
    content = {"fid": {"mu": MU, "sigma": sigma}}
    assert np.array_equal(read_statistics(written(tmp_path / "ref.pkl", content, protocol))["sigma"], sigma)


def test_a_number_of_images_that_is_numpys(tmp_path) -> None:
    content = {**STATISTICS, "num_images": np.int64(7)}
    assert read_statistics(written(tmp_path / "ref.pkl", content))["num_images"] == 7


def test_it_is_a_reference(tmp_path) -> None:
    reference = read_reference(written(tmp_path / "ref.pkl", STATISTICS), Flat())
    assert torch.equal(reference.statistics.mean, torch.from_numpy(MU))
    assert torch.equal(reference.statistics.cov, torch.from_numpy(SIGMA))
    assert reference.num_images == 50_000
    assert reference.fingerprint is None
    six = {"fid": STATISTICS["fd_dinov2"]}
    with pytest.raises(ValueError, match="has 6 features"):
        read_reference(written(tmp_path / "six.pkl", six), Flat())
    broken = {"fid": {"mu": MU, "sigma": np.full((4, 4), np.nan)}}
    with pytest.raises(ValueError, match="not finite"):
        read_reference(written(tmp_path / "nan.pkl", broken), Flat())


class Evil:
    def __reduce__(self):
        return open, ("canary", "w")


def claims(shape: tuple[int, ...]) -> bytes:
    """An array of 32 bytes that says it has another shape."""
    made = pickle.dumps(STATISTICS, 3)
    assert made.count(b"K\x04\x85") >= 1  # the shape of mu
    size = b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in shape) + b"t"
    return made.replace(b"K\x04\x85", size, 1)


def encoded_often() -> bytes:
    """One text of a megabyte, made bytes of again and again."""
    text = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20
    once = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R"
    return b"\x80\x02" + text + b"q\x00" + b"](" + once * 1000 + b"e\x86."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Evil()), "it names"),
        (pickle.dumps({**STATISTICS, "fd_dinov2": Evil()}), "it names"),
        (pickle.dumps({"fid": {"mu": MU, "sigma": np.array([Evil()])}}, 3), "it names"),
        (claims((2**40,)), "in 32 bytes"),
        (claims((2**31, 2**31)), "in 32 bytes"),
        (claims((-4,)), "cannot be read"),
        (pickle.dumps({"fid": {"mu": MU.astype("U3"), "sigma": SIGMA}}), "cannot be read"),
        (pickle.dumps({"fid": {"mu": MU.astype(">f8"), "sigma": SIGMA}}), "cannot be read"),
        (pickle.dumps({"fid": {"mu": [0.0], "sigma": SIGMA}}), "cannot be read"),
        (pickle.dumps({"fd_dinov2": STATISTICS["fid"]}), "no statistics 'mu' and 'sigma' as 'fid'"),
        (pickle.dumps([1]), "no statistics 'mu' and 'sigma' as 'fid'"),
        (pickle.dumps(STATISTICS)[:-40], "damaged or truncated"),
        (b"", "ref.pkl"),
        (encoded_often(), "bytes of one text many times"),
        (b"\x80\x04" + b"N" * 1_000_001 + b".", "more than 1,000,000"),
    ],
)
def test_what_is_no_reference_or_hostile_is_one_line(tmp_path, monkeypatch, content: bytes, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ref.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_reference("ref.pkl", Flat())
    assert "\n" not in str(caught.value)
    assert not Path("canary").exists()


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_reference("absent.pkl", Flat())
