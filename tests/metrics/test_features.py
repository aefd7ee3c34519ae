import pytest
import torch
from projection import Projection

from ersde_lit.data import Digits
from ersde_lit.metrics import Classifier, Features, Inception, features_for


def test_fingerprint_tells_weights_classes_and_preprocessing_apart():
    class Other(Projection):
        pass

    class Darker(Projection):
        preprocessing = "darker"

    kinds = [Projection(0), Projection(1), Other(0), Darker(0)]
    assert len({features.fingerprint for features in kinds}) == 4
    assert Projection(0).fingerprint == Projection(0).eval().fingerprint
    assert Projection(0).double().fingerprint != Projection(0).fingerprint
    assert Projection(0).bfloat16().fingerprint != Projection(0).fingerprint


def test_features_alone_have_no_classes():
    class Mean(Features):
        num_features = 1

        def forward(self, images):
            return images.float().mean((1, 2, 3))[:, None]

    images = torch.full((2, 1, 2, 2), 7, dtype=torch.uint8)
    features, logits = Mean().features_and_logits(images)
    assert features.tolist() == [[7], [7]]
    assert logits is None
    assert Mean().num_classes == 0


@pytest.mark.usefixtures("cache")
def test_the_classifier_serves_where_inceptions_weights_cannot_be_had_if_that_was_said(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.warns(UserWarning, match="weights are not here .* those of a classifier") as warned:
        assert isinstance(features_for("inception_or_classifier", Digits()), Classifier)
    assert "\n" not in str(warned[0].message)
    with pytest.raises(ValueError, match="weights are not here"):
        features_for("inception", Digits())
    (tmp_path / "bad.pth").write_text("text")
    with pytest.raises(ValueError, match=r"bad\.pth"):  # given, so wanted
        features_for("inception_or_classifier", Digits(), tmp_path / "bad.pth")


@pytest.mark.usefixtures("cache")
def test_the_classifier_tells_its_classes():
    classifier = features_for("classifier", Digits())
    assert isinstance(classifier, Classifier)
    images, labels = Digits().split("test")
    features, logits = classifier.features_and_logits(images)
    assert (features.shape, logits.shape) == ((180, 64), (180, 10))
    assert classifier.num_classes == 10
    assert (logits.argmax(1) == labels).double().mean() > 0.95
    assert torch.equal(features, classifier(images))


def test_features_of_ones_own_come_back_in_evaluation_mode():
    own = Projection().train()
    assert features_for(own) is own
    assert not own.training


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("classifier",), "trained on the labels of a data set: name one, or choose others"),
        (("clip",), "no features named 'clip': choose inception, dinov2, efficientnet, classifier or"),
        (("classifier", Digits(), "weights.pth"), "weights are Inception's"),
        ((Projection(), None, "weights.pth"), "weights are Inception's"),
        (("inception", None, "/absent/weights.pth"), "/absent/weights.pth cannot be read: No such file"),
    ],
)
def test_says_what_is_wrong(given, message):
    with pytest.raises(ValueError, match=message):
        features_for(*given)


def test_inception_is_a_features():
    assert (Inception.num_features, Inception.num_classes) == (2048, 1008)
