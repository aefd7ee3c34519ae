import io
import pickle
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ersde_lit.untrusted.pickled_tensors import TENSORS
from ersde_lit.untrusted.restricted_pickle import AllowedNames, read_pickle

NAMES = AllowedNames(TENSORS)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_no_pickle(content: bytes) -> None:
    with suppress(ValueError):
        read_pickle(io.BytesIO(b"\x80\x04" + content), NAMES)


KEYS = st.text() | st.integers(1 - 2**60, 2**60 - 1)
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner, inner, inner) | st.dictionaries(KEYS, inner),
    max_leaves=10,
)


@given(VALUES, st.sampled_from([3, 4, 5]))
def test_plain_values_are_read_as_python_reads_them(value: object, protocol: int) -> None:
    assert read_pickle(io.BytesIO(pickle.dumps(value, protocol)), AllowedNames({})) == value


@pytest.mark.parametrize("value", [np.float64(0.3), np.float32(0.3), np.int64(-7), np.sqrt(0.5)])
def test_numbers_of_numpy(value) -> None:
    assert read_pickle(io.BytesIO(pickle.dumps(value)), NAMES) == value.item()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(3, 4).T,
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(10)[4:7],
        torch.randn(()),
        torch.zeros(0, 3),
        torch.arange(5),
        torch.tensor([True, False]),
        torch.randn(4).double(),
        torch.randn(4).half(),
        torch.randn(4).bfloat16(),
        torch.nn.Parameter(torch.randn(2)),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)}, {tensor.dtype}",
)
def test_tensors_as_torch_pickles_them(tensor: torch.Tensor) -> None:
    read = read_pickle(io.BytesIO(pickle.dumps(tensor)), NAMES)
    assert read.dtype == tensor.dtype
    assert torch.equal(read, tensor)
