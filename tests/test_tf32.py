import warnings

import pytest
import torch
from torch import nn

from ersde_lit.data import Digits
from ersde_lit.metrics import Recipe, classifier
from ersde_lit.metrics.features import Features, extract
from ersde_lit.sampling.generate import generate
from ersde_lit.sampling.run import Job
from ersde_lit.solvers import default
from ersde_lit.tf32 import tf32

NEWER = hasattr(torch.backends.cudnn, "conv")


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def state():
    """All there is to read, an error where torch refuses to read the older switches beside the newer."""
    found = []
    for read in (*(lambda k=k: flags()[k] for k in (0, 1)), torch.get_float32_matmul_precision):
        try:
            found.append(read())
        except RuntimeError:
            found.append("refused")
    backends = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn) if NEWER else ()
    return found, [switch.fp32_precision for switch in switches]


@pytest.fixture(autouse=True)
def put_back():
    with warnings.catch_warnings(), tf32(True):
        warnings.simplefilter("error")
        yield


def newer(matmul):
    torch.backends.cuda.matmul.fp32_precision = matmul
    torch.backends.cudnn.conv.fp32_precision = "ieee"


def older(matmul, cudnn):
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn


@pytest.mark.parametrize(
    "choose",
    [
        *(lambda m=m, c=c: older(m, c) for m in ("highest", "high", "medium") for c in (True, False)),
        *(lambda m=m: newer(m) for m in ("ieee", "tf32") if NEWER),
    ],
)
def test_rules_inside_and_puts_back_what_was_chosen(choose):
    choose()
    before = state()
    for allowed in (False, True):
        with tf32(allowed):
            assert flags() == (allowed, allowed)
            assert set(state()[1]) <= {"tf32" if allowed else "ieee"}
        assert state() == before
    with pytest.raises(ValueError, match="in it"), tf32():
        raise ValueError("in it")
    assert state() == before


class Seen(nn.Module):
    """A denoiser that notes what its products may be in."""

    image_shape, num_classes, lam_min, lam_max = (1, 8, 8), 0, 0.002, 80.0

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(())), set()

    def forward(self, y, lam):
        self.seen.add(flags())
        return 0.5 * self.weight * y


def test_seeded_sampling_is_without_it_unless_asked_by_name():
    denoiser = Seen()
    list(generate(denoiser, default(4), range(3), 4))
    Job(denoiser, default(4), 4).images(range(3), 2)
    assert denoiser.seen == {(False, False)}
    denoiser.seen.clear()
    Job(denoiser, default(4), 4, allow_tf32=True).images(range(3), 2)
    assert denoiser.seen == {(True, True)}
    assert flags() == (True, True)


def test_metrics_are_without_it(monkeypatch, tmp_path):
    seen = set()

    class Noting(Features):
        num_features = 1

        def forward(self, images):
            seen.add(flags())
            return images.float().mean((1, 2, 3))[:, None]

    extract(Noting(), torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    assert seen == {(False, False)}
    relu = torch.nn.functional.relu
    monkeypatch.setattr(torch.nn.functional, "relu", lambda *given, **more: seen.add(flags()) or relu(*given, **more))
    classifier(Digits(), tmp_path, Recipe(max_images=256))
    assert seen == {(False, False)}
