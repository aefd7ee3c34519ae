import runpy
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from cleanfid.fid import frechet_distance, kernel_distance
from projection import Projection, some_images
from ranks import run_on_ranks
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from ersde_lit.metrics import METRICS, Reference, Scores, precision_recall, statistics
from ersde_lit.metrics.reference import _measure

REAL, FAKE = some_images(200, 0), some_images(150, 1, 30, 220)


def reference(images=REAL, keep=1000, features=None):
    return _measure(images.split(50), features or Projection(), "cpu", keep, "real images", lambda count: None)


def measured(images=FAKE, metrics=METRICS, against=None, **given):
    result = Scores(Projection(), against or reference(), metrics, **given)
    for batch in images.split(37):
        result.update(batch)
    return result


def as_features(images):
    return Projection().eval()(images).detach()


def moments(images):
    f = as_features(images).double().numpy()
    return f.mean(0), np.cov(f, rowvar=False)


def in_edms_way(mu, sigma, mu_ref, sigma_ref):
    """As calculate_fid_from_inception_stats goes about it (Karras et al., 2022)."""
    root = scipy.linalg.sqrtm(sigma @ sigma_ref)
    return float(np.real(np.square(mu - mu_ref).sum() + np.trace(sigma + sigma_ref - root * 2)))


def test_fid_is_edms_and_cleanfids_on_the_same_features():
    value = measured(metrics=["fid"]).compute()["fid"]
    assert value == pytest.approx(in_edms_way(*moments(FAKE), *moments(REAL)), rel=1e-8)
    assert value == pytest.approx(frechet_distance(*moments(FAKE), *moments(REAL)), rel=1e-8)


def test_kid_is_cleanfids(monkeypatch):
    fake, real = as_features(FAKE).double().numpy(), as_features(REAL[:150]).double().numpy()
    value = measured(metrics=["kid"], against=reference(REAL[:150])).compute()["kid"]  # every subset is the whole
    assert value == pytest.approx(kernel_distance(fake, real, num_subsets=1), rel=1e-6)
    monkeypatch.setattr(sys.modules["ersde_lit.metrics.scores"], "SUBSET_SIZE", 40)
    of_subsets = measured(metrics=["kid"]).compute()["kid"]
    assert of_subsets != value
    torch.rand(1)  # elsewhere
    assert of_subsets == measured(metrics=["kid"]).compute()["kid"]


def test_inception_score_is_torch_fidelitys(monkeypatch):
    _, logits = Projection().eval().features_and_logits(FAKE)
    monkeypatch.setattr(sys.modules["ersde_lit.metrics.scores"], "SPLITS", 1)  # they are drawn otherwise there
    expected = isc_features_to_metric(logits.detach(), splits=1)["inception_score_mean"]
    assert expected > 1.2
    assert measured(metrics=["is"]).compute()["is"] == pytest.approx(expected, rel=1e-6)


def test_precision_and_recall_are_torch_fidelitys():
    values = measured(metrics=["recall", "precision"]).compute()
    assert list(values) == ["recall", "precision"]
    expected = calculate_precision_recall_full(as_features(FAKE).double(), as_features(REAL).double(), 3)
    assert 0.05 < min(expected) < max(expected) < 1
    assert (values["precision"], values["recall"]) == pytest.approx(expected, abs=1e-7)


def test_precision_and_recall_of_sets_that_are_known():
    line = torch.arange(300.0)[:, None].expand(-1, 2)
    assert precision_recall(line, line) == (1, 1)
    assert precision_recall(line + 1000, line) == (0, 0)
    assert precision_recall(line[:100], line) == (1, pytest.approx(103 / 300))  # within 3 of 0 .. 99
    with pytest.raises(ValueError, match="more than 3 images of each kind, not 3 generated and 300 real"):
        precision_recall(line[:3], line)


def test_all_metrics_come_from_one_pass_over_the_very_images():
    features = Projection().train()
    result = Scores(features, reference(), METRICS)
    result.update(FAKE)
    values = result.compute()
    assert not features.training
    assert torch.equal(torch.cat(features.given), FAKE)
    assert list(values) == list(METRICS)
    assert result.num_images == 150


@pytest.mark.parametrize("keep", [1000, 60])
def test_values_do_not_depend_on_order_or_batches(keep):
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    a, b = measured(keep=keep).compute(), measured(FAKE[order], keep=keep).compute()
    assert b == pytest.approx(a, rel=1e-6)  # float32 features


def test_memory_is_bounded():
    result = Scores(Projection(), reference(keep=50), METRICS, keep=60)
    for _ in range(20):
        result.update(some_images(100, _))
        assert sum(map(len, result.sample.rows)) <= 2 * 60 + 64
        assert len(result.sample.keys) == len(result.sample.kept) == 1  # pieces: many would keep the heap in use
    assert result.compute()["fid"] > 0
    assert len(result.sample.compute().rows) == 60
    assert result.num_images == 2000
    assert len(reference(keep=50).features) == 50
    assert Scores(Projection(), reference(keep=0), ["fid"]).sample.width == 0


def test_the_sample_is_no_part_of_the_images_that_looks_alike():
    """Dark and bright images are drawn alike: half of each."""
    images = torch.cat([some_images(500, 0, 0, 40), some_images(500, 1, 200, 256)])
    result = Scores(Projection(), reference(), ["kid"], keep=200)
    result.update(images)
    dark = as_features(images[:500])
    kept = sum((dark == row).all(1).any().item() for row in result.sample.compute().rows)
    assert 70 < kept < 130


def test_no_images_at_a_time_are_no_images():
    result = measured()
    result.update(FAKE[:0])
    assert result.compute() == measured().compute()


def test_autocast_does_not_reach_the_features():
    with torch.autocast("cpu", torch.bfloat16):
        rounded = measured().compute()
    assert rounded == measured().compute()


def test_reset_forgets_the_images_and_keeps_the_reference():
    result = measured()
    first = result.compute()
    result.reset()
    result.update(some_images(50, 3))
    assert result.compute() != first
    assert result.num_images == 50
    result.reset()
    for batch in FAKE.split(37):
        result.update(batch)
    assert result.compute() == first


def test_duplicated_images_do_not_pass_unnoticed():
    """As a DistributedSampler pads its shares."""
    padded = measured(torch.cat([FAKE, FAKE[:2]]), ["fid"])
    with pytest.warns(UserWarning, match="2 of 152 images are copies of others to the byte"):
        padded.compute()
    assert padded.num_images == 152
    whole = measured(metrics=["fid"])
    whole.compute()
    assert whole.notes == ()


def test_says_what_few_images_do_to_fid():
    few, enough = measured(FAKE[:6], ["fid"]), measured(FAKE[:7], ["fid"])
    with pytest.warns(UserWarning, match="6 images for 6 features: their covariance is singular and FID is biased upw"):
        few.compute()
    enough.compute()
    assert len(few.notes) == 1
    assert not enough.notes
    of_few = measured(metrics=["fid"], against=reference(REAL[:5]))
    with pytest.warns(UserWarning, match="5 images of the reference for 6 features"):
        of_few.compute()


def test_few_images_do_bias_fid_upwards():
    """What the note says: images of the very distribution of the reference."""
    few = [measured(some_images(7, seed), ["fid"]).compute()["fid"] for seed in range(20, 40)]
    many = measured(some_images(2000, 50), ["fid"]).compute()["fid"]
    assert np.mean(few) > 5 * many


def test_protocol_says_how():
    protocol = measured().protocol
    assert set(protocol) == {"features", "preprocessing", "fingerprint", "reference", *METRICS}
    assert protocol["reference"] == "200 real images"
    assert protocol["kid"] == "100 seeded subsets of at most 1000, of at most 50000 images against 200 real ones"


class Broken(Projection):
    def __init__(self, features, logits=None):
        super().__init__()
        self.outcome = features, logits

    def features_and_logits(self, images):
        return self.outcome


NAN = torch.full((3, 2, 4, 4), torch.nan)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 2, 4, 4), r"uint8 images \[n, C, H, W\], not torch.float32 \[3, 2, 4, 4\]: quantise them"),
        (NAN, r"torch.float32 \[3, 2, 4, 4\], with NaN among them,: quantise them"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), r"not torch.uint8 \[2, 4, 4\]"),
        (torch.zeros(2, 2, 4, 4, dtype=torch.int64), "not torch.int64"),
    ],
)
def test_takes_bytes_only(images, message):
    with pytest.raises(ValueError, match=message):
        measured(metrics=["fid"]).update(images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scores(Projection(), reference(), ["fdi"]), "no metric named 'fdi': choose from fid, kid, is, prec"),
        (lambda: Scores(Projection(), reference(), []), "no metric: choose from fid"),
        (
            lambda: Scores(Projection(), reference(keep=0), ["kid"]),
            r"kid needs features .*\(200 real images\) has none",
        ),
        (lambda: Scores(Projection(1), reference()), "taken in other features than Projection"),
        (
            lambda: Scores(NoClasses(), Reference(statistics(NoClasses(), [REAL]), ""), ["is"]),
            "and NoClasses have none",
        ),
        (lambda: measured(FAKE[:1]).compute(), "at least two images, not 1"),
        (lambda: measured(FAKE[:0]).compute(), "at least two images, not 0"),
        (lambda: reference(REAL[:1]), "at least two images, not 1"),
        (lambda: measured(FAKE[:19], metrics=["is"]).compute(), "at least 20 images, two a split, not 19"),
        (lambda: update(Broken(torch.zeros(3, 5))), r"Broken gave features \[3, 5\], not \[3, 6\]"),
        (lambda: update(Broken(torch.zeros(3, 6))), r"gave logits None, not \[3, 5\]"),
        (lambda: update(Broken(torch.zeros(3, 6), torch.zeros(3, 4))), r"gave logits \[3, 4\], not \[3, 5\]"),
        (lambda: update(Broken(torch.full((3, 6), torch.nan), torch.zeros(3, 5))).compute(), "not finite in all of 3"),
    ],
)
def test_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class NoClasses(Projection):
    def __init__(self):
        super().__init__()
        self.num_classes = 0


def update(features):
    result = Scores(features, Reference(reference().statistics, "real"), ["fid", "is"])
    result.update(FAKE[:3])
    return result


def test_a_reference_of_other_size_says_so():
    wide = Reference(statistics(Projection(), [REAL])._replace(mean=torch.zeros(7), cov=torch.eye(7)), "theirs")
    with pytest.raises(ValueError, match=r"the reference \(theirs\) has 7 features, and Projection are 6"):
        Scores(Projection(), wide)


def test_does_not_depend_on_the_number_of_ranks():
    """The last of three has no image."""
    script = Path(__file__).with_name("scores_on_ranks.py")
    expected = runpy.run_path(str(script))["scores_of"](0, 1)
    for ranks in (2, 3):
        done = run_on_ranks(script, "on_ranks", ranks=ranks)
        assert done.codes == [0] * ranks, done.said
        for found in done.values:
            assert found == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_images_of_another_size_or_other_channels_are_warned_of():
    class Any(Projection):
        def forward(self, images):
            return super().forward(images.flatten(1)[:, :32])

    real = reference()
    for shape, known, words in (
        ((2, 4, 4), (2, 4, 4), None),
        ((2, 4, 4), None, None),
        ((2, 8, 8), (2, 4, 4), "images are 8x8, 2 channels, and those of the reference 4x4, 2 channels"),
        ((3, 4, 4), (2, 4, 4), "images are 4x4, 3 channels, and those of the reference 4x4, 2 channels"),
        ((2, 4, 8), (2, 4, 4), "images are 4x8, 2 channels"),
    ):
        features = Any()
        scores = Scores(features, replace(real, image_shape=known, fingerprint=None))
        scores.update(torch.randint(0, 256, (20, *shape), dtype=torch.uint8))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scores.compute()
        sizes = [note for note in scores.notes if "those of the reference" in note]
        assert [str(warning.message) for warning in caught] == [*scores.notes]
        assert [note.startswith(words or "?") for note in sizes] == ([] if words is None else [True])
        assert scores.protocol.get("reference_size") == (None if known is None else "4x4, 2 channels")


def test_copies_in_the_reference_are_noted():
    scores = Scores(Projection(), replace(reference(), copies=12))
    scores.update(FAKE)
    scores.compute()
    assert scores.notes == (
        f"12 of {len(REAL)} images of the reference are copies of others to the byte, and count twice",
    )
