import math

import pytest
import torch
from torch import Tensor

from ersde_lit.denoisers import (
    EDA,
    VE,
    VP,
    BiasField,
    Cosine,
    Denoiser,
    FieldNoise,
    Flow,
    Latents,
    LogNormal,
    LogUniform,
    PairNoise,
    Process,
    UniformTime,
    White,
)
from ersde_lit.denoisers.preconditioning import PRECONDITIONINGS, PREDICTIONS, PreconditioningName
from ersde_lit.networks import Network

STD = 0.5  # of the Gaussian data; the best denoiser is y * STD^2 / (STD^2 + lam^2)
VALID = [
    (VE(), "edm", "edm"), (VE(), "edm", "eps"), (VE(), "edm", "x0"), (VE(), "edm", "score"),
    (VE(), "ve", "score"), (VE(), "ve", "eps"),
    (VP(), "vp", "eps"), (VP(), "vp", "v"), (VP(), "vp", "x0"), (VP(), "vp", "score"), (VP(), "edm", "v"),
    (VP(steps=1000), "vp", "eps"), (VP(steps=1000), "vp", "v"),
    (Cosine(), "iddpm", "eps"), (Cosine(), "iddpm", "v"), (Cosine(), "iddpm", "x0"), (Cosine(), "edm", "v"),
    (Flow(), "flow", "v"), (Flow(), "flow", "x0"),
]  # fmt: skip
COSINE_499 = math.sin(math.pi / 2 * 0.499 / 1.008) / math.sin(math.pi / 2 / 1.008)  # alpha of iDDPM at j = 499
EDA_HALF = (0.25 + math.expm1(-2.5375) / math.expm1(-10.05)) ** -0.5  # c_in at t = 1/2, of unit noise
LAMS = torch.tensor([0.05, 0.5, 5.0, 50.0], dtype=torch.float64)


class Oracle(Network):
    """The F whose denoiser is exact on N(0, STD^2): what each prediction type is defined to be, in native x."""

    def __init__(self, process: Process, prediction: str, lam: Tensor, c_in: Tensor) -> None:
        super().__init__()
        self.image_shape, self.num_classes = (1, 1, 1), 0
        self.process, self.prediction, self.lam, self.c_in = process, prediction, lam, c_in
        self.unused = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        lam = self.lam.view(-1, 1, 1, 1)
        y = x / self.c_in.view(-1, 1, 1, 1)
        x0 = y * STD**2 / (STD**2 + lam**2)
        eps = (y - x0) / lam
        alpha = self.process.alpha_of_lam(lam)
        v = eps - x0 if isinstance(self.process, Flow) else alpha * eps - lam * alpha * x0
        edm = torch.zeros_like(y)  # on Gaussian data the skip is exact already
        return {"x0": x0, "eps": eps, "score": -eps, "v": v, "edm": edm}[self.prediction]


def oracle(process: Process, preconditioning: str, prediction: str, lam: Tensor) -> Denoiser:
    c_in = PRECONDITIONINGS[preconditioning].c_in(lam, STD, process)
    return Denoiser(Oracle(process, prediction, lam, c_in), process, preconditioning, prediction, sigma_data=STD)


@pytest.mark.parametrize(("process", "preconditioning", "prediction"), VALID)
def test_every_prediction_is_turned_into_x0(process: Process, preconditioning: str, prediction: str) -> None:
    y = torch.randn(4, 1, 1, 1, dtype=torch.float64) * 10
    x0 = oracle(process, preconditioning, prediction, LAMS)(y, LAMS)
    exact = y * STD**2 / (STD**2 + LAMS.view(-1, 1, 1, 1) ** 2)
    torch.testing.assert_close(x0, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["eps", "v", "score"])
def test_the_loss_is_the_squared_error_of_the_output(prediction: str) -> None:
    process = VP()
    x0, eps = torch.randn(2, 4, 1, 1, 1, dtype=torch.float64)
    denoiser = oracle(process, "vp", prediction, LAMS)
    lam = LAMS.view(-1, 1, 1, 1)
    alpha = process.alpha_of_lam(lam)
    target = {"eps": eps, "score": -eps, "v": alpha * eps - lam * alpha * x0}[prediction]
    output = denoiser.network(alpha * (x0 + lam * eps), LAMS)
    torch.testing.assert_close(denoiser.loss(x0, LAMS, eps), (output - target).square().flatten(), rtol=1e-6, atol=1e-9)


def test_the_edm_loss_has_its_published_weight() -> None:
    # lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (Karras et al. 2022, table 1)
    denoiser = oracle(VE(), "edm", "edm", LAMS)
    x0, eps = torch.randn(2, 4, 1, 1, 1, dtype=torch.float64)
    error = (denoiser(x0 + LAMS.view(-1, 1, 1, 1) * eps, LAMS) - x0).square().flatten()
    weight = (LAMS**2 + STD**2) / (LAMS * STD) ** 2
    torch.testing.assert_close(denoiser.loss(x0, LAMS, eps), weight * error)


@pytest.mark.parametrize(("process", "preconditioning", "prediction"), VALID)
def test_every_loss_stays_moderate_at_all_its_noise_levels(
    process: Process, preconditioning: str, prediction: str
) -> None:
    density = PRECONDITIONINGS[preconditioning].density
    lam = density.lam(torch.rand(2000, dtype=torch.float64), process)
    x0 = STD * torch.randn(2000, 1, 1, 1, dtype=torch.float64)
    # a network of zero output: what training starts from
    denoiser = oracle(process, preconditioning, prediction, lam)
    denoiser.network.forward = lambda x, *_: torch.zeros_like(x)  # type: ignore[method-assign]
    loss = denoiser.loss(x0, lam, torch.randn_like(x0)).mean()
    assert 0.05 < loss < 10


def test_a_host_scalar_and_a_vector_of_lams_agree() -> None:
    lam = torch.full((4,), 0.7)
    denoiser = oracle(VP(), "vp", "eps", lam).double()
    y = torch.randn(4, 1, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(denoiser(y, lam[0]), denoiser(y, lam), rtol=1e-6, atol=1e-6)


def test_ranges_and_levels() -> None:
    net = Oracle(VE(), "eps", LAMS, LAMS)
    assert (Denoiser(net).lam_min, Denoiser(net).lam_max) == (0.0, math.inf)
    ve = Denoiser(net, VE(0.01, 60.0), "ve", "score")
    assert (ve.lam_min, ve.lam_max) == (0.01, 60.0)
    vp = Denoiser(net, VP(steps=1000), "vp", "eps")
    assert vp.levels is not None
    assert (vp.lam_min, vp.lam_max) == pytest.approx((0.0100005, 157.40728))
    assert Denoiser(net, VP(steps=1000), "edm", "edm").levels is None
    iddpm = Denoiser(net, Cosine(), "iddpm", "eps")
    assert iddpm.levels is not None
    assert (iddpm.lam_min, iddpm.lam_max) == pytest.approx((0.006425, 20291.17), rel=1e-4)


@pytest.mark.parametrize(("process", "name"), [(VP(steps=1000), "vp"), (Cosine(), "iddpm")], ids=["vp", "iddpm"])
def test_a_discrete_network_is_told_the_step(process: Process, name: PreconditioningName) -> None:
    told = []

    class Probe(Oracle):
        def forward(self, x: Tensor, c_noise: Tensor, labels=None, augment=None) -> Tensor:
            told.append(c_noise)
            return x

    assert process.levels is not None
    steps = torch.tensor([0, 1, 500, 998, 999])
    denoiser = Denoiser(Probe(process, "eps", LAMS, LAMS), process, name, "eps")
    denoiser(torch.zeros(5, 1, 1, 1, dtype=torch.float64), process.levels[steps])
    torch.testing.assert_close(told[0], steps.double())
    Denoiser(Probe(VP(), "eps", LAMS, LAMS), VP(), "vp", "eps")(
        torch.zeros(1, 1, 1, 1, dtype=torch.float64), VP().lam(torch.tensor([1.0], dtype=torch.float64))
    )
    torch.testing.assert_close(told[1], torch.tensor([999.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "process", "lam", "c_in", "c_noise", "density"),
    [  # Karras et al. 2022, table 1, with sigma_data 0.5; for VP beta 0.1 to 20
        ("edm", VE(), 2.0, 1 / math.sqrt(4.25), math.log(2) / 4, LogNormal(-1.2, 1.2)),
        ("ve", VE(), 5.0, 1.0, math.log(5 / 2), LogUniform()),
        ("vp", VP(), math.sqrt(math.expm1(0.05 + 19.9 / 8)), math.exp(-(0.05 + 19.9 / 8) / 2), 499.5, UniformTime()),
        ("flow", Flow(), 3.0, 0.25, 750.0, LogNormal(0.0, 1.0)),
        ("eda", EDA(), math.sqrt(math.expm1(-2.5375) / math.expm1(-10.05)), EDA_HALF, 499.5, UniformTime(0.01)),
        ("iddpm", Cosine(), math.sqrt(COSINE_499**-2 - 1), COSINE_499, 1000 - 1 - 499, UniformTime()),
    ],
)
def test_what_the_network_is_given_is_as_published(name, process, lam, c_in, c_noise, density) -> None:
    table, at = PRECONDITIONINGS[name], torch.tensor(lam, dtype=torch.float64)
    assert table.c_in(at, 0.5, process).item() == pytest.approx(c_in)
    assert table.c_noise(at, process.t_of_lam(at)).item() == pytest.approx(c_noise)
    assert table.density == density


@pytest.mark.parametrize("noise", [FieldNoise(std=0.3), BiasField(), PairNoise(std=0.7)], ids=str)
def test_a_degradation_is_predicted_by_the_network_as_published(noise) -> None:
    seen = []

    class Probe(Oracle):
        def forward(self, x: Tensor, c_noise: Tensor, labels=None, augment=None) -> Tensor:
            seen.append(x)
            return x.sin()

    denoiser = Denoiser(Probe(EDA(), "eda", LAMS, LAMS), EDA(), "eda", "eda", sigma_data=STD, noise=noise)
    x0, n = torch.randn(2, 4, 1, 1, 1, dtype=torch.float64)
    lam = torch.tensor([0.1, 0.3, 0.7, 1.0], dtype=torch.float64)
    column = lam.view(-1, 1, 1, 1)
    y = x0 + column * n
    c_in = 1 / (STD**2 + (column * noise.std) ** 2).sqrt()
    torch.testing.assert_close(denoiser(y, lam), y - column * (c_in * y).sin(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(seen[0], c_in * y, rtol=1e-14, atol=1e-14)
    error = (lam * (n - (c_in * y).sin()).flatten()).square()  # of x0, at weight 1
    torch.testing.assert_close(denoiser.loss(x0, lam, n), error, rtol=1e-12, atol=1e-14)
    assert (denoiser.lam_min, denoiser.lam_max) == pytest.approx((EDA().lam(torch.tensor(0.01)).item(), 1.0))


def test_a_direct_prediction_has_min_snr_weight() -> None:
    lam = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    weight = PREDICTIONS["x0"].weight(lam, torch.ones_like(lam))
    torch.testing.assert_close(weight, torch.tensor([5.0, 4.0, 0.25], dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((VE(), "vp", "eps"), "preconditioning 'vp' needs the process VP, got VE"),
        ((VP(), "ve", "eps"), "preconditioning 've' needs the process VE, got VP"),
        ((VP(steps=1000), "iddpm", "eps"), "preconditioning 'iddpm' needs the process Cosine, got VP"),
        ((VE(), "ve", "v"), "prediction 'v' needs the process VP or Flow"),
        ((VP(), "vp", "edm"), "needs preconditioning 'edm'"),
        ((VE(), "edm", "noise"), "unknown prediction 'noise': choose one of edm, eps"),
        ((VE(), "karras", "edm"), "unknown preconditioning 'karras'"),
        ((VE(), "edm", "edm", 0.0), "sigma_data is a standard deviation"),
        ((VE(), "eda", "eda", 0.5, False, None, PairNoise()), "preconditioning 'eda' needs the process EDA, got VE"),
        ((VE(), "edm", "eda"), "prediction 'eda' needs the process EDA, got VE"),
        ((EDA(), "vp", "eda"), "preconditioning 'vp' needs the process VP, got EDA"),
        ((EDA(), "eda", "eda"), "noise White does not go with preconditioning 'eda'"),
        ((EDA(), "eda", "eda", 0.5, False, None, White()), "noise White does not go with preconditioning 'eda'"),
        (
            (EDA(), "edm", "edm", 0.5, False, None, FieldNoise()),
            "noise FieldNoise does not go with preconditioning 'edm'",
        ),
        ((VP(), "vp", "eps", 0.5, False, None, PairNoise()), "needs process EDA, preconditioning 'eda' and"),
        ((EDA(), "eda", "eda", 0.5, False, Latents((0.0,), (1.0,)), PairNoise()), "a model of latents samples images"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Denoiser(Oracle(VE(), "eps", LAMS, LAMS), *arguments)


def test_densities_are_inverse_distribution_functions() -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log = LogNormal(-0.8, 1.1).lam(u, VE()).log()
    assert (log.mean().item(), log.std().item()) == pytest.approx((-0.8, 1.1), rel=1e-3)
    uniform = LogUniform().lam(u, VE(0.02, 100)).log()
    assert (uniform.min().item(), uniform.max().item()) == pytest.approx((math.log(0.02), math.log(100)), abs=1e-3)
    assert uniform.diff().std() < 1e-9
    t = VP().t_of_lam(UniformTime().lam(u, VP()))
    assert (t.min().item(), t.max().item(), t.mean().item()) == pytest.approx((1e-5, 1.0, 0.5), abs=1e-4)
    steps = UniformTime().lam(u, VP(steps=1000))
    assert torch.equal(steps.unique(), VP(steps=1000).levels)
    level, count = UniformTime().lam(u, Cosine()).unique(return_counts=True)
    assert torch.equal(level, Cosine().levels)
    assert count.unique().tolist() == [100]
