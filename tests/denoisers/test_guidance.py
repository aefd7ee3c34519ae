import copy
import math

import pytest
import torch
from tiny import network
from torch import Tensor, nn

from ersde_lit.denoisers import EDA, VE, VP, Denoiser, FieldNoise
from ersde_lit.denoisers.clean_classifier import CleanClassifier, smoothed
from ersde_lit.denoisers.guidance import (
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    EpsilonScaling,
    Guidance,
    Unconditional,
)
from ersde_lit.sampling.generate import generate
from ersde_lit.solvers import DDIM, ERSDE, NFECounter, SeededNoise, TableSampler, grids, sample
from ersde_lit.solvers.oracles import Gaussian, Mixture, output_law

MODES = 4
LAMS = [0.01, 0.3, 1.0, 7.0, 80.0]
Y = torch.randn(6, MODES, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.tensor([0, 1, 1, 0, 0, 1])
MEANS = torch.tensor([[0.5, -0.3, 0.2, 1.0], [-0.7, 0.1, 0.4, 0.0]], dtype=torch.float64)
STDS = torch.tensor([[0.4, 0.2, 1.0, 0.5], [0.3, 0.6, 0.1, 0.8]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
ALL = Mixture(WEIGHTS, MEANS, STDS)


def normal(mean: float, std: float) -> Gaussian:
    return Gaussian(torch.full((MODES,), mean, dtype=torch.float64), torch.full((MODES,), std, dtype=torch.float64))


class Exact(nn.Module):
    """Exact denoisers, one a class, and one without a class; what was asked of it is in `calls`."""

    image_shape, lam_min, lam_max, levels, sigma_data, process = (MODES,), 0.0, math.inf, None, 0.5, VE()

    def __init__(self, classes: list[Gaussian], everything: Gaussian | Mixture) -> None:
        super().__init__()
        self.classes, self.everything = classes, everything
        self.num_classes = len(classes)
        self.calls: list[tuple[int, list[int] | None]] = []

    def forward(self, y: Tensor, lam: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls.append((len(y), None if labels is None else labels.tolist()))
        x0 = self.everything(y, column(lam))
        for k, gaussian in enumerate(self.classes if labels is not None else []):
            x0 = torch.where((labels == k).unsqueeze(1), gaussian(y, column(lam)), x0)
        return x0


def column(lam: Tensor) -> Tensor:
    return lam.view(-1, 1) if lam.ndim else lam


def two_classes(everything: Gaussian | Mixture = ALL) -> Exact:
    return Exact([Gaussian(mean, std) for mean, std in zip(MEANS, STDS, strict=True)], everything)


class BayesClassifier(nn.Module):
    """The exact log p(k | y, lam) of ALL."""

    num_classes = 2

    def forward(self, y: Tensor, lam: Tensor) -> Tensor:
        lam = lam.view(-1, 1, 1)
        variance = (STDS / lam) ** 2 + 1  # of y / lam, the division by which keeps lam for the gradient
        log_density = -0.5 * ((y.unsqueeze(1) / lam - MEANS / lam) ** 2 / variance + variance.log()).sum(-1)
        return (WEIGHTS.log() + log_density).log_softmax(-1)


def host(lam: float) -> Tensor:
    return torch.tensor(lam, dtype=torch.float64)


def of_product(y: Tensor, lam: Tensor, good: Gaussian, bad: Gaussian, scale: float) -> Tensor:
    """The denoiser whose score is that of good^scale bad^(1 - scale), a product of powers of noisy Gaussians."""
    precisions = scale / (good.std**2 + lam**2), (1 - scale) / (bad.std**2 + lam**2)
    return y - lam**2 * sum(p * (y - g.mean) for p, g in zip(precisions, (good, bad), strict=True))


# --- classifier-free


@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_classifier_free_has_the_score_of_a_product_of_powers(lam: float, scale: float) -> None:
    everything = normal(0.1, 0.9)
    guided = ClassifierFree(two_classes(everything), scale)(Y, host(lam), LABELS)
    for k, y, x0 in zip(LABELS, Y, guided, strict=True):
        exact = of_product(y, host(lam), Gaussian(MEANS[k], STDS[k]), everything, scale)
        torch.testing.assert_close(x0, exact, rtol=1e-12, atol=1e-10)


def test_classifier_free_of_equal_widths_samples_a_gaussian_moved_away_from_all_data() -> None:
    # N(m_u + scale (m_c - m_u), std^2), through a sampler with noise, and its law exactly
    model = Exact([normal(1.0, 0.5)], normal(0.25, 0.5))
    moved = normal(0.25 + 2.5 * 0.75, 0.5)
    tableau = ERSDE(3, corrector=3).tableau(grids.edm(40))
    labels = torch.zeros(42, dtype=torch.int64)

    def laws(denoiser, **conditions):
        start = moved.marginal_std(tableau.lams[0])
        run = lambda y, noise: sample(denoiser, tableau, y, noise=noise, **conditions)  # noqa: E731
        return output_law(run, moved.mean, start, tableau.nfe)

    for got, expected in zip(laws(ClassifierFree(model, 2.5), labels=labels), laws(moved), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(laws(moved)[0], moved.mean, rtol=1e-3, atol=1e-3)


def test_classifier_free_is_one_call_of_twice_the_batch_and_scale_one_a_plain_one() -> None:
    model = two_classes()
    ClassifierFree(model, 2.0)(Y, host(1.0), LABELS)
    assert model.calls == [(12, LABELS.tolist() + [-1] * 6)]
    model.calls.clear()
    x0 = ClassifierFree(model, 1.0)(Y, host(1.0), LABELS)
    assert model.calls == [(6, LABELS.tolist())]
    assert torch.equal(x0, model(Y, host(1.0), LABELS))


def test_images_without_a_label_are_not_guided() -> None:
    labels = torch.full((6,), -1)
    torch.testing.assert_close(ClassifierFree(two_classes(), 3.0)(Y, host(1.0), labels), ALL(Y, host(1.0)))
    guided = ClassifierGuidance(two_classes(), BayesClassifier(), 3.0)(Y, host(1.0), labels)
    torch.testing.assert_close(guided, ALL(Y, host(1.0)))


# --- autoguidance


@pytest.mark.parametrize("lam", LAMS)
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_autoguidance_has_the_score_of_a_product_of_powers(lam: float, scale: float) -> None:
    good, bad = normal(0.5, 0.3), normal(0.4, 0.5)
    guided = Autoguidance(Exact([], good), Exact([], bad), scale)(Y, host(lam))
    torch.testing.assert_close(guided, of_product(Y, host(lam), good, bad, scale), rtol=1e-12, atol=1e-10)


def test_autoguidance_by_an_unconditional_guide_is_classifier_free() -> None:
    model = two_classes()
    two_calls = Autoguidance(model, Unconditional(model), 2.5)(Y, host(0.5), LABELS)
    torch.testing.assert_close(two_calls, ClassifierFree(model, 2.5)(Y, host(0.5), LABELS), rtol=1e-12, atol=1e-12)


def test_the_guide_gets_the_labels_and_no_call_where_it_has_no_weight() -> None:
    guide = two_classes()
    Autoguidance(two_classes(), guide, 1.0)(Y, host(1.0), LABELS)
    assert guide.calls == []
    Autoguidance(two_classes(), guide, 2.0)(Y, host(1.0), LABELS)
    assert guide.calls == [(6, LABELS.tolist())]


# --- classifier guidance


@pytest.mark.parametrize("lam", LAMS)
def test_an_exact_classifier_makes_the_conditional_denoiser_of_the_unconditional_one(lam: float) -> None:
    model = two_classes()
    guided = ClassifierGuidance(Unconditional(model), BayesClassifier(), 1.0)
    assert guided.num_classes == 2
    torch.testing.assert_close(guided(Y, host(lam), LABELS), model(Y, host(lam), LABELS), rtol=1e-10, atol=1e-9)


def test_classifier_guidance_of_any_scale_is_classifier_free_guidance_with_exact_models() -> None:
    model = two_classes()
    by_classifier = ClassifierGuidance(Unconditional(model), BayesClassifier(), 2.5)(Y, host(0.7), LABELS)
    torch.testing.assert_close(by_classifier, ClassifierFree(model, 2.5)(Y, host(0.7), LABELS))
    # ADM-G: guiding the conditional model adds to the 1 that is in it
    by_both = ClassifierGuidance(model, BayesClassifier(), 1.5)(Y, host(0.7), LABELS)
    torch.testing.assert_close(by_both, by_classifier)


def test_classifier_guidance_works_in_inference_mode_and_scale_zero_asks_no_classifier() -> None:
    model = two_classes()
    guided = ClassifierGuidance(Unconditional(model), BayesClassifier(), 1.0)
    expected = guided(Y, host(0.5), LABELS)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            x0 = guided(Y.clone(), host(0.5), LABELS.clone())
        assert torch.equal(x0, expected)
        assert not x0.requires_grad
    plain = ClassifierGuidance(model, BayesClassifier(), 0.0)
    plain.classifier.forward = None  # type: ignore[method-assign]
    assert torch.equal(plain(Y, host(0.5), LABELS), model(Y, host(0.5), LABELS))


# --- classifiers of clean images


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 1.0, -1.0]], dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


class OnImages(nn.Module):
    """A Gaussian's denoiser for [B, MODES, 1, 1]."""

    image_shape, num_classes = (MODES, 1, 1), 0

    def __init__(self, data: Gaussian) -> None:
        super().__init__()
        self.data = data

    def forward(self, y: Tensor, lam: Tensor) -> Tensor:
        return self.data(y.flatten(1), lam).view_as(y)


@pytest.mark.parametrize(("joint", "marginal"), [(1.0, 1.0), (2.0, 0.5), (1.0, 0.0)])
def test_a_clean_classifier_is_differentiated_through_the_denoiser(joint: float, marginal: float) -> None:
    # A linear classifier of a Gaussian's denoised y: the chain rule by hand.
    data, lam, weight = normal(0.2, 0.6), host(0.8), Linear().weight
    denoiser = OnImages(data)
    clean = CleanClassifier(denoiser, Linear(), 2, joint=joint, marginal=marginal)
    x0 = ClassifierGuidance(denoiser, clean, 1.5)(Y.view(6, MODES, 1, 1), lam, LABELS)
    shares = (marginal * data(Y, lam) @ weight.T).softmax(1)
    jacobian = 0.6**2 / (0.6**2 + lam**2)
    gradient = jacobian * (joint * weight[LABELS] - marginal * shares @ weight)
    torch.testing.assert_close(x0.flatten(1), data(Y, lam) + 1.5 * lam**2 * gradient, rtol=1e-10, atol=1e-10)


def test_a_clean_classifier_normalises_repeats_grey_and_resizes() -> None:
    class Look(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            self.seen = images
            return images.flatten(1)[:, :2]

    class Half(nn.Module):
        num_classes = 0

        def forward(self, y: Tensor, lam: Tensor) -> Tensor:
            return torch.zeros_like(y)  # a grey of 0.5

    clean = CleanClassifier(Half(), Look(), 2, mean=[0.5, 0.25, 0.0], std=[1.0, 0.5, 0.25], size=6)
    clean(torch.zeros(2, 1, 4, 4), torch.tensor(1.0))
    assert clean.model.seen.shape == (2, 3, 6, 6)
    torch.testing.assert_close(clean.model.seen[0, :, 3, 3], torch.tensor([0.0, 0.5, 2.0]))
    log_p = CleanClassifier(Half(), nn.Flatten(), 16)(torch.zeros(2, 1, 4, 4), torch.tensor(1.0))
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(2))


def test_a_clean_classifier_guides_a_network_through_generate() -> None:
    denoiser = Denoiser(network(), VP(steps=1000), "vp", "eps")
    nn.init.normal_(denoiser.network.leave[-1].weight)  # it starts at 0
    clean = CleanClassifier(denoiser, nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 3)
    plain, guided = (ClassifierGuidance(denoiser, clean, scale) for scale in (0.0, 1.0))
    images, others = (next(generate(d, TableSampler(DDIM()), range(5), nfe=4)).images for d in (guided, plain))
    assert images.shape == (5, 1, 4, 4)
    assert images.isfinite().all()
    assert not torch.allclose(images, others)


def test_smoothing_replaces_every_relu_of_a_copy() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), shared, nn.Sequential(nn.Linear(2, 2), shared, nn.ReLU(inplace=True)))
    smooth = smoothed(model, beta=4.0)
    assert not any(isinstance(m, nn.ReLU) for m in smooth.modules())
    assert model[1] is shared
    x = torch.tensor([[0.1, -0.3]])
    torch.testing.assert_close(smooth[1](x), (1 + (4 * x).exp()).log() / 4)
    with pytest.raises(ValueError, match=r"no nn\.ReLU"):
        smoothed(nn.Linear(2, 2))


# --- epsilon scaling


@pytest.mark.parametrize("lam", LAMS)
def test_epsilon_scaling_divides_the_predicted_noise(lam: float) -> None:
    data = normal(0.3, 0.5)
    for slope, process, time in ((0.0, VE(), 0.0), (0.01, VE(), lam), (0.02, VP(), VP().t_of_lam(host(lam)))):
        model = Exact([], data)
        model.process = process
        x0 = EpsilonScaling(model, 1.05, slope)(Y, host(lam))
        eps = (Y - data(Y, host(lam))) / lam
        torch.testing.assert_close((Y - x0) / lam, eps / (1.05 + slope * time), rtol=1e-9, atol=1e-9)
        per_image = EpsilonScaling(model, 1.05, slope)(Y, host(lam).expand(6))
        torch.testing.assert_close(per_image, x0)


def test_epsilon_scaling_changes_a_sampled_gaussian_as_its_differential_equation_says() -> None:
    # dy/dlam = y lam / (std^2 + lam^2) / b has the solution y ~ (std^2 + lam^2)^(1 / (2 b))
    data, b, first = normal(0.0, 0.5), 1.1, 20.0
    tableau = ERSDE(3, "ode", corrector=3).tableau(grids.edm(400, lam_max=first))
    start = torch.ones(1, MODES, dtype=torch.float64)
    end = sample(EpsilonScaling(Exact([], data), b), tableau, start)
    ratio = (0.5**2 / (0.5**2 + first**2)) ** (1 / (2 * b))
    torch.testing.assert_close(end, ratio * start, rtol=1e-4, atol=0)


def test_epsilon_scaling_by_one_is_the_plain_denoiser() -> None:
    model = Exact([], normal(0.3, 0.5))
    assert torch.equal(EpsilonScaling(model, 1.0)(Y, host(80.0)), model(Y, host(80.0)))


# --- intervals


def kinds(model: Exact, interval: tuple[float, float]) -> list[Guidance]:
    return [
        ClassifierFree(model, 3.0, interval),
        Autoguidance(model, two_classes(normal(0.0, 1.0)), 3.0, interval),
        ClassifierGuidance(model, BayesClassifier(), 3.0, interval),
    ]


@pytest.mark.parametrize("kind", range(3))
def test_outside_its_interval_guidance_is_off_and_nothing_but_the_denoiser_is_called(kind: int) -> None:
    model = two_classes()
    guided = kinds(model, (0.5, 2.0))[kind]
    everywhere = kinds(model, (0.0, math.inf))[kind]
    for lam, inside in ((0.4, False), (0.5, False), (0.6, True), (2.0, True), (2.1, False)):
        model.calls.clear()
        x0 = guided(Y, host(lam), LABELS)
        assert len(model.calls) == 1
        assert model.calls[0][0] == (12 if inside and kind == 0 else 6)
        expected = everywhere(Y, host(lam), LABELS) if inside else model(Y, host(lam), LABELS)
        assert torch.equal(x0, expected)


@pytest.mark.parametrize("kind", range(3))
def test_an_interval_is_decided_image_by_image_for_a_lam_an_image(kind: int) -> None:
    model = two_classes(normal(0.1, 0.9))
    guided = kinds(model, (0.5, 2.0))[kind]
    lam = torch.tensor([0.1, 0.5, 0.7, 1.0, 2.0, 9.0], dtype=torch.float64)
    alone = [guided(Y[i : i + 1], lam[i], LABELS[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(guided(Y, lam, LABELS), torch.cat(alone), rtol=1e-12, atol=1e-12)


def test_in_the_loop_the_guide_is_called_within_the_interval_only() -> None:
    guide, model = NFECounter(two_classes()), NFECounter(two_classes())
    guided = Autoguidance(model, guide, 2.0, interval=(0.2, 3.0))
    sampler = TableSampler(ERSDE(2))
    sampler(guided, SeededNoise(range(6), (MODES,)), 12, labels=LABELS)
    lams = sampler.lams(guided, 12)[:-1]
    assert model.nfe == 12
    assert 0 < guide.nfe == int(((lams > 0.2) & (lams <= 3.0)).sum()) < 12


# --- what a wrapper is


def test_wrappers_nest_and_answer_for_the_denoiser_they_wrap() -> None:
    inner = Denoiser(network(), VP(steps=1000), "vp", "eps", sigma_data=0.3)
    wrapped = EpsilonScaling(ClassifierFree(inner, 2.0, (0.1, 5.0)), 1.01, slope=0.1)
    for name in ("lam_min", "lam_max", "levels", "process", "sigma_data", "image_shape", "num_classes"):
        assert getattr(wrapped, name) is getattr(inner, name) or getattr(wrapped, name) == getattr(inner, name)
    assert [p.shape for p in wrapped.parameters()] == [p.shape for p in inner.parameters()]
    twin = copy.deepcopy(wrapped)
    sampler = TableSampler(ERSDE(2))
    images, again = (next(generate(d, sampler, range(4), nfe=5)).images for d in (wrapped, twin))
    assert torch.equal(images, again)
    assert set(sampler.lams(wrapped, 5)[:-1].tolist()) <= set(inner.levels.tolist())
    for incomplete in (wrapped, Unconditional.__new__(Unconditional)):
        with pytest.raises(AttributeError):
            _ = incomplete.nothing


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: ClassifierFree(m, math.nan), "finite"),
        (lambda m: ClassifierFree(m, 2.0, (2.0, 1.0)), "low < high"),
        (lambda m: ClassifierFree(m, 2.0)(Y, host(1.0)), "ClassifierFree guides towards a class: pass labels"),
        (lambda m: ClassifierFree(Unconditional(m), 2.0), "has no classes"),
        (lambda m: ClassifierGuidance(m, BayesClassifier(), 1.0)(Y, host(1.0)), "pass labels"),
        (lambda m: ClassifierGuidance(Exact([ALL] * 3, ALL), BayesClassifier(), 1.0), "2 classes, the model 3"),
        (lambda m: Autoguidance(m, Exact([ALL] * 3, ALL), 2.0), "num_classes is 3, not 2"),
        (lambda m: EpsilonScaling(m, 0.0), "scale > 0"),
        (lambda m: EpsilonScaling(m, 1.0, math.inf), "finite slope"),
        (lambda m: CleanClassifier(m, nn.Identity(), 2, std=0.0), "std must be positive"),
        (lambda m: CleanClassifier(m, nn.Identity(), 2, marginal=-1.0), "temperatures"),
    ],
)
def test_what_cannot_be_guided_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(two_classes())


@pytest.mark.parametrize(
    "guided",
    [
        lambda restores, samples: ClassifierFree(restores, 2.0),
        lambda restores, samples: ClassifierGuidance(restores, BayesClassifier(), 1.0),
        lambda restores, samples: Autoguidance(restores, samples, 2.0),
        lambda restores, samples: Autoguidance(samples, restores, 2.0),
        lambda restores, samples: ClassifierFree(EpsilonScaling(restores, 1.01), 2.0),
    ],
)
def test_models_that_restore_are_not_guided(guided) -> None:
    restores = Denoiser(network(num_classes=2), EDA(), "eda", "eda", noise=FieldNoise())
    with pytest.raises(ValueError, match="this one restores them"):
        guided(restores, two_classes())


def test_a_guide_must_have_seen_all_classes_of_the_guided_model():
    model, guide = two_classes(), two_classes()
    guide.trained_classes = (0,)
    with pytest.raises(ValueError, match="guide has not seen class 1"):
        Autoguidance(model, guide, 2.0)
    model.trained_classes = (0,)
    assert Autoguidance(model, guide, 2.0).trained_classes == (0,)
    guide.trained_classes = None
    assert Autoguidance(model, guide, 2.0).trained_classes == (0,)
