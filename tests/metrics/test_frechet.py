import math

import pytest
import scipy.linalg
import torch
from projection import Projection, some_images
from torchmetrics.image.fid import FrechetInceptionDistance

from ersde_lit.metrics import Reference, Scores, statistics
from ersde_lit.metrics.pooled import with_float64

REAL, FAKE = some_images(200, 0), some_images(150, 1, 30, 200)


def scores_to(reference, features=None):
    return Scores(features or Projection(), Reference(reference, "some images"))


def fid_of(images, reference, batch_size=64):
    scores = scores_to(reference)
    for batch in images.split(batch_size):
        scores.update(batch)
    return scores.compute()["fid"]


def in_numpy(real, fake):
    """The textbook formula, with a matrix square root, on the same features."""
    features = Projection().eval()
    a, b = (features(x).double().detach() for x in (real, fake))
    root = scipy.linalg.sqrtm((torch.cov(a.T) @ torch.cov(b.T)).numpy()).real
    return ((a.mean(0) - b.mean(0)).square().sum() + torch.cov(a.T).trace() + torch.cov(b.T).trace()).item() - 2 * (
        root.trace()
    )


def test_is_the_textbook_formula():
    value = fid_of(FAKE, statistics(Projection(), REAL.split(64)))
    assert value == pytest.approx(in_numpy(REAL, FAKE), rel=1e-8)


def test_is_torchmetrics_value_for_two_sets_of_images():
    metric = FrechetInceptionDistance(Projection().eval())
    metric.update(REAL, real=True)
    metric.update(FAKE, real=False)
    assert fid_of(FAKE, statistics(Projection(), [REAL])) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_statistics_are_mean_and_unbiased_covariance():
    features = Projection().eval()(REAL).double()
    mean, cov, n = statistics(Projection(), REAL.split(30))
    assert n == 200
    assert mean.dtype == cov.dtype == torch.float64
    torch.testing.assert_close(mean, features.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cov, torch.cov(features.T), rtol=1e-10, atol=1e-12)


def test_a_set_has_no_distance_to_itself():
    assert abs(fid_of(REAL, statistics(Projection(), [REAL]))) < 1e-9


@pytest.mark.parametrize("batch_size", [1, 7, 150])
def test_does_not_depend_on_the_batch_size(batch_size):
    a = fid_of(FAKE, statistics(Projection(), REAL.split(batch_size)), batch_size)
    assert a == pytest.approx(fid_of(FAKE, statistics(Projection(), [REAL])), rel=1e-7)  # float32 features


def test_reset_forgets_the_images_and_keeps_the_reference():
    reference = statistics(Projection(), [REAL])
    scores = scores_to(reference)
    scores.update(FAKE)
    first = scores.compute()
    scores.reset()
    scores.update(some_images(50, 3))
    assert scores.compute() != first
    scores.reset()
    scores.update(FAKE)
    assert scores.compute() == first


def test_features_see_the_very_bytes_at_their_size_in_evaluation_mode():
    features = Projection().train()
    scores_to(statistics(Projection(), [REAL]), features).update(FAKE)
    assert not features.training
    assert all(given.dtype == torch.uint8 for given in features.given)
    assert torch.equal(torch.cat(features.given), FAKE)


def test_statistics_are_taken_in_evaluation_mode():
    a, b = statistics(Projection().train(), [REAL]), statistics(Projection().eval(), [REAL])
    assert torch.equal(a.cov, b.cov)


@pytest.mark.parametrize(
    "images", [torch.rand(4, 2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8), torch.full((4, 2, 4, 4), math.nan)]
)
def test_takes_bytes_only(images):
    scores = scores_to(statistics(Projection(), [REAL]))
    for update in (scores.update, lambda x: statistics(Projection(), [x])):
        with pytest.raises(ValueError, match=r"metrics take uint8 images \[n, C, H, W\], not .*: quantise them"):
            update(images)


def test_one_image_has_no_statistics():
    with pytest.raises(ValueError, match="at least two images, not 1"):
        statistics(Projection(), [REAL[:1]])


def test_sums_in_float64_are_not_kept_where_there_is_none() -> None:
    assert with_float64("mps:0") == "cpu"
    assert with_float64("cuda:1") == "cuda:1"
