import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ersde_lit.solvers import ERSDE, NoiseScale, custom, eta, noise_scale, power, window

double = partial(torch.tensor, dtype=torch.float64)
LAM = torch.logspace(-3.5, 2.5, 200, dtype=torch.float64)

PUBLISHED = {
    "ode": lambda x: x,
    "sde": lambda x: x**2,
    "er_sde_1": lambda x: x * ((-1 / x).exp() + 10),
    "er_sde_2": lambda x: x**1.5,
    "er_sde_3": lambda x: x**2.5,
    "er_sde_4": lambda x: x**0.9 * (1 + 100 * x**1.5).log10(),
    "er_sde_5": lambda x: x * ((x**0.3).exp() + 10),
}


def assert_consistent(scale: NoiseScale) -> None:
    """kappa is what log_g's derivative says."""
    derived = custom(scale.phi).kappa(LAM)
    torch.testing.assert_close(scale.kappa(LAM), derived, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("power:1.5", power(1.5)),
        ("eta:er_sde_5:0.5", eta("er_sde_5", 0.5)),
        ("eta:power:3:.25", eta(power(3), 0.25)),
        ("window:1:0.05:2:0.3", window(1, 0.05, 2, 0.3)),
        ("window:1:5e-2:2", window(1, 0.05, 2)),
    ],
)
def test_written_with_their_arguments(text: str, meant: NoiseScale) -> None:
    assert torch.equal(noise_scale(text).phi(LAM), meant.phi(LAM))
    assert ERSDE(noise_scale=text).noise_scale == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("power:x", "'x' is no number; write it as power:P or eta:NAME:S"),
        ("power:0.5", "power p must be a number of at least 1"),
        ("power:nan", "power p must be a number of at least 1"),
        ("power", "unknown noise scale 'power', choose from ode"),
        ("power:1:2", "unknown noise scale 'power:1:2'"),
        ("eta:0.5", "unknown noise scale 'eta:0.5'"),
        ("eta:er_sde_9:0.5", "unknown noise scale 'er_sde_9'"),
        ("eta:er_sde_5:", "'' is no number"),
        ("window:1:2", "window:STRENGTH:LOW:HIGH:WIDTH"),
        ("window:1:2:0.05", "0 < low < high"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        noise_scale(text)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name: str) -> None:
    scale = noise_scale(name)
    # The formula for 4 as it is written loses digits to 1 + 100 x^1.5 at small x.
    torch.testing.assert_close(scale.phi(LAM), PUBLISHED[name](LAM), rtol=1e-11, atol=0)
    torch.testing.assert_close(scale.log_g(LAM), (PUBLISHED[name](LAM) / LAM).log(), rtol=0, atol=1e-11)
    assert_consistent(scale)
    assert noise_scale(scale) is scale


@given(st.floats(1, 6))
@settings(deadline=None)
def test_power(p: float) -> None:
    torch.testing.assert_close(power(p).phi(LAM), LAM**p, rtol=1e-12, atol=0)
    assert_consistent(power(p))


@pytest.mark.parametrize("name", PUBLISHED)
def test_eta_runs_from_the_ode_to_its_base(name: str) -> None:
    phi = noise_scale(name).phi(LAM)
    for s in (0.0, 0.3, 1.0, 1.7):
        torch.testing.assert_close(eta(name, s).phi(LAM), LAM ** (1 - s) * phi**s, rtol=1e-11, atol=0)
        assert_consistent(eta(name, s))
    lams = torch.tensor([3.0, 1.0, 0.2])
    assert not ERSDE(1, eta(name, 0)).tableau(lams).b.any()


def test_window_is_the_sde_inside_and_the_ode_outside() -> None:
    scale = window(1.0, 0.1, 10.0, 0.1)
    kappa = scale.kappa(double([1e-3, 1.0, 1e3]))
    torch.testing.assert_close(kappa, double([1.0, 2.0, 1.0]), rtol=0, atol=1e-9)
    inside = scale.log_g(double([0.5, 2.0]))
    torch.testing.assert_close(inside[1] - inside[0], torch.tensor(math.log(4)).double(), rtol=0, atol=1e-6)


@given(st.floats(0, 5), st.floats(1e-3, 10), st.floats(1.05, 100), st.floats(0.1, 2))
@settings(deadline=None)
def test_window(strength: float, low: float, ratio: float, width: float) -> None:
    assert_consistent(window(strength, low, low * ratio, width))
    assert (window(strength, low, low * ratio, width).kappa(LAM) >= 1).all()


@pytest.mark.parametrize("inference", [False, True])
def test_custom_differentiates_what_it_is_given(inference: bool) -> None:
    def phi(x: Tensor) -> Tensor:
        return x * ((x**0.3).exp() + 10)

    lams = double([80.0, 3.0, 0.5, 0.01])
    with torch.inference_mode(inference):
        named, derived = ERSDE(3).tableau(lams), ERSDE(3, custom(phi)).tableau(lams)
        given = ERSDE(3, custom(phi, noise_scale("er_sde_5").kappa)).tableau(lams)
    for name in "rcb":
        torch.testing.assert_close(getattr(derived, name), getattr(named, name), rtol=0, atol=1e-12)
        torch.testing.assert_close(getattr(given, name), getattr(named, name), rtol=0, atol=1e-12)


def jump(x: Tensor) -> Tensor:
    return torch.where(x > 1, 2 * x, x)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("corrector", [None, 2])
@pytest.mark.parametrize(
    ("scale", "step"),
    [
        (custom(torch.square, lambda lam: torch.full_like(lam, 3)), "80 to 10"),
        (custom(torch.square, lambda lam: torch.full_like(lam, math.nan)), "80 to 10"),
        (custom(jump), "10 to 0.1"),
        (power(1e9), "80 to 10"),
    ],
    ids=str,
)
def test_a_table_that_would_be_wrong_is_refused(scale: NoiseScale, step: str, order: int, corrector) -> None:
    message = re.escape(f"noise scale {scale} gives no table: from lam {step} ")
    with pytest.raises(ValueError, match=message):
        ERSDE(order, scale, corrector).tableau(double([80.0, 10.0, 0.1, 0.0]))


@pytest.mark.parametrize(
    "scale",
    [power(150.0), power(400.0), power(1e4), eta("sde", 300), eta(power(100), 50), window(1e3, 0.1, 10)],
    ids=str,
)
def test_steep_scales_are_integrated_exactly(scale: NoiseScale) -> None:
    tableau = ERSDE(3, scale, 3).tableau(double([80.0, 10.0, 2.0, 0.1, 0.09, 0.0]))
    for rows in (tableau.c[:4], tableau.corrector[:4]):
        torch.testing.assert_close(rows.sum(1), 1 - tableau.r[:4], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "fn", [lambda x: x.detach() ** 2, lambda x: torch.from_numpy(x.numpy() ** 2)], ids=["detached", "numpy"]
)
def test_what_autograd_cannot_follow_needs_its_kappa(fn) -> None:
    lams = double([80.0, 10.0, 0.1, 0.0])
    with pytest.raises(ValueError, match=r"autograd cannot follow custom\(squared\), pass kappa="):
        ERSDE(2, custom(fn, name="custom(squared)")).tableau(lams)
    given = ERSDE(2, custom(fn, lambda lam: torch.full_like(lam, 2))).tableau(lams)
    torch.testing.assert_close(given.c, ERSDE(2, "sde").tableau(lams).c, rtol=0, atol=1e-12)


def test_refuses_a_step_that_would_remove_noise() -> None:
    grid = double([2000.0, 1022.5, 1.0, 0.0])
    with pytest.raises(ValueError, match=r"er_sde_4 is not valid from lam 2000 to 1022.5"):
        ERSDE(2, "er_sde_4").tableau(grid)
    assert ERSDE(2, "er_sde_4").tableau(torch.tensor([1022.0, 1021.0, 1.0, 0.0])).b[0] >= 0
    for paper in (False, True):
        with pytest.raises(ValueError, match="custom"):
            ERSDE(2, custom(torch.sqrt), paper=paper).tableau(grid)
    for phi in (lambda x: -x, lambda x: x * float("nan"), lambda x: 0 * x):
        with pytest.raises(ValueError, match="not valid"):
            ERSDE(1, custom(phi)).tableau(grid)


def test_rounding_is_no_reason_to_refuse() -> None:
    """Where phi / lam is flat its logarithm wavers by an ulp."""
    lams = torch.linspace(0.04, 0.001, 5000, dtype=torch.float64)
    for name in PUBLISHED:
        assert (noise_scale(name).step_log_g(lams) <= 0).all()
    wavering = NoiseScale("flat", lambda lam: 2.3 + 4e-16 * (1e6 * lam).sin().sign(), torch.ones_like)
    assert (wavering.step_log_g(lams) <= 0).all()


@pytest.mark.parametrize(("name", "hint"), [("er_sde5", "er_sde_5"), ("ODE", ""), (3, ""), ("", "")])
def test_refuses_unknown_names(name, hint: str) -> None:
    with pytest.raises(ValueError, match="unknown noise scale .* choose from ode, sde, er_sde_1.*" + hint):
        noise_scale(name)


@pytest.mark.parametrize(
    "make",
    [
        lambda: power(0.9),
        lambda: power(math.nan),
        lambda: power("2"),
        lambda: power(True),
        lambda: custom(3),
        lambda: custom(torch.square, 2),
        lambda: eta("sde", "1"),
        lambda: window(math.inf, 0.1, 1),
        lambda: window("1", 0.1, 1),
        lambda: window(1, "0.1", 1),
        lambda: eta("sde", -0.1),
        lambda: eta("nothing", 1),
        lambda: window(-1, 0.1, 1),
        lambda: window(1, 1, 0.1),
        lambda: window(1, 0, 1),
        lambda: window(1, 0.1, 1, 0.05),
    ],
)
def test_refuses_nonsense(make) -> None:
    with pytest.raises(ValueError):
        make()
