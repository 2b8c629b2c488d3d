"""Grids, quadrature weights and the rows of solvers, against small cases by hand and integrals by SciPy."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from hfgen.schedulers import (
    DDIMInverseScheduler,
    DDPMScheduler,
    DPMSolverPlusPlusScheduler,
    RectifiedFlowScheduler,
    ScoreSDEScheduler,
)
from hfgen.schedulers.adams_bashforth import adams_rows, adams_step, integral_weights, straight_coordinates
from hfgen.schedulers.dpm_solver import block_orders
from hfgen.schedulers.exponential import FORMS, multistep, singlestep
from hfgen.schedulers.grids import (
    LEVEL_GRIDS,
    ROUNDING,
    balanced_shares,
    integer_positions,
    lambda_to_share,
    share_to_lambda,
    spaced_positions,
)
from hfgen.schedulers.table import Combination, Scales, combine, posterior, scales

# --- positions in a table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "count", "last", "options", "expected"),
    [
        ("linspace", 5, 8, {}, [8, 6, 4, 2, 0]),
        ("linspace", 4, 8, {"ends": 1}, [8, 6, 4, 2]),
        ("linspace", 1, 8, {}, [8]),
        ("linspace", 2, 8, {}, [8, 0]),
        ("leading", 4, 7, {}, [6, 4, 2, 0]),
        ("leading", 3, 7, {"ends": 1}, [6, 4, 2]),
        ("leading", 4, 7, {"offset": 1}, [7, 5, 3, 1]),
        ("leading", 4, 7, {"offset": 2}, [7, 6, 4, 2]),
        ("trailing", 4, 7, {}, [7, 5, 3, 1]),
        ("trailing", 1, 7, {}, [7]),
        ("trailing", 3, 8, {}, [8, 5, 2]),
    ],
)
def test_positions_by_hand(spacing, count, last, options, expected):
    assert spaced_positions(spacing, count, last, **options) == pytest.approx(expected)


def test_rounding_of_ties():
    assert [ROUNDING["linspace"](value) for value in (2.5, 3.5, 2.4)] == [2, 4, 2]
    assert [ROUNDING["leading"](value) for value in (2.9, 3 - 1e-12, 3.0)] == [2, 3, 3]
    assert [ROUNDING["trailing"](value) for value in (0.5, 1.5, 2.4)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("positions", "last", "expected"),
    [
        ([4.0, 2.0, 0.0], 4, [4, 2, 0]),
        ([3.2, 3.1, 3.0], 5, [3, 2, 1]),
        ([0.4, 0.2, 0.1], 5, [2, 1, 0]),
        ([9.0, 5.0], 5, [5, 4]),
        ([2.0, 1.0, 1.0, 0.0, -3.0], 4, [4, 3, 2, 1, 0]),
        ([7.6], 9, [8]),
    ],
)
def test_whole_positions_fall_and_stay_in_the_table(positions, last, expected):
    assert integer_positions(positions, last) == expected
    assert integer_positions([1.9, 0.9], 5, math.floor) == [1, 0]


# --- noise levels -----------------------------------------------------------------------------------------------------


def test_shares_and_lambdas_by_hand():
    assert lambda_to_share(0.0) == 0.5 and lambda_to_share(math.log(3)) == pytest.approx(0.25)
    assert share_to_lambda(0.25) == pytest.approx(math.log(3)) and share_to_lambda(0.8) == pytest.approx(-math.log(4))
    assert share_to_lambda(1.0) == -math.inf and 0 < lambda_to_share(1e6) < 1e-300


@pytest.mark.parametrize("clock", [1.0, 0.36, 2.0])
@pytest.mark.parametrize("first", [1.0, 0.994])
def test_balanced_shares_are_even_in_their_variable(clock, first):
    shares = balanced_shares(6, first, clock)
    u = [(1 - s) ** clock for s in [*shares, 0.0]]  # the last step ends at clean data, u = 1
    np.testing.assert_allclose(np.diff(u), (1 - (1 - first) ** clock) / 6, rtol=1e-9)
    assert shares[0] == pytest.approx(first)
    np.testing.assert_allclose(balanced_shares(4, 1.0, power=2.0), [1, 9 / 16, 4 / 16, 1 / 16])


@pytest.mark.parametrize("name", LEVEL_GRIDS)
def test_levels_go_from_the_first_to_the_last(name):
    grid = LEVEL_GRIDS[name](7, -4.0, 3.0)
    assert len(grid) == 7 and (np.diff(grid) > 0).all()
    assert (grid[0], grid[-1]) == pytest.approx((-4, 3)) and LEVEL_GRIDS[name](1, -4.0, 3.0) == pytest.approx([-4])


def test_levels_are_even_in_their_own_variable():
    np.testing.assert_allclose(np.diff(LEVEL_GRIDS["lambda"](8, -4.0, 3.0)), 1)
    roots = np.exp(-np.array(LEVEL_GRIDS["karras"](8, -4.0, 3.0)) / 7)  # (sigma / alpha)^(1/7)
    np.testing.assert_allclose(np.diff(roots), (math.exp(-3 / 7) - math.exp(4 / 7)) / 7)
    low, high = math.exp(-3), math.exp(4)
    places = [(math.exp(-lam) - low) / (high - low) for lam in LEVEL_GRIDS["beta"](6, -4.0, 3.0)]
    density = lambda x: (x * (1 - x)) ** -0.4  # noqa: E731  (Beta(0.6, 0.6), not normed)
    total, _ = integrate.quad(density, 0, 1)
    for i, place in enumerate(places):
        assert integrate.quad(density, 0, place)[0] / total == pytest.approx(1 - i / 5, abs=1e-6)


# --- weights ----------------------------------------------------------------------------------------------------------


def scales_at(share):
    """A point of a VP path at s = sigma / (alpha + sigma)."""
    norm = math.hypot(share, 1 - share)
    alpha, sigma = (1 - share) / norm, share / norm
    return Scales(alpha, sigma, math.log(alpha / sigma) if sigma else math.inf)


@pytest.mark.parametrize("clock", [1.0, 0.36])
@pytest.mark.parametrize("nodes", [[0.6], [0.6, 0.75], [0.6, 0.75, 0.9], [0.35, 0.6, 0.75]])
def test_integral_weights_are_exact_for_polynomials_in_the_clock(clock, nodes):
    weights = integral_weights(nodes, 0.6, 0.35, clock)
    for power in range(len(nodes)):
        function = lambda s, power=power: (1 - s) ** (clock * power)  # noqa: E731
        expected, _ = integrate.quad(function, 0.6, 0.35)
        assert sum(w * function(s) for w, s in zip(weights, nodes, strict=True)) == pytest.approx(expected, rel=1e-6)
    assert integral_weights(nodes, 0.6, 0.6, clock) == [0.0] * len(nodes)


def test_an_adams_step_takes_a_point_to_its_place_on_a_line():
    """x_0 and eps constant: y = (1 - s) x_0 + s eps, and x = y (alpha + sigma)."""
    now, then = scales_at(0.7), scales_at(0.4)
    x_0, eps = 0.3, -1.2
    assert straight_coordinates(now) == pytest.approx((0.7, now.alpha + now.sigma))
    keep, gains = adams_step(now, then, [now, scales_at(0.8)])
    value = keep * (now.alpha * x_0 + now.sigma * eps) + sum(gains) * (eps - x_0)
    assert value == pytest.approx(then.alpha * x_0 + then.sigma * eps)


@pytest.mark.parametrize(("clock", "first"), [(1.0, 1), (0.36, 12)])
def test_which_steps_are_corrected_and_of_what_order(clock, first):
    points = [scales_at(s) for s in np.linspace(0.99, 0.01, 16)]
    rows = adams_rows(list(range(16, 0, -1)), points, predictor=1, corrector=3, clock=clock)
    assert [row.t for row in rows] == list(range(16, 1, -1))
    assert [row.anchor is not None for row in rows] == [n >= first for n in range(15)]
    for n, row in enumerate(rows):
        explicit = 2 if n < first or n == 14 else 1
        assert len(row.next.gains) == min(explicit, n + 1)
        if row.anchor is not None:
            assert len(row.anchor.gains) == min(3, n + 1)
    plain = adams_rows(list(range(16, 0, -1)), points, predictor=3)
    assert all(row.anchor is None for row in plain) and [len(row.next.gains) for row in plain[:4]] == [1, 2, 3, 3]


@pytest.mark.parametrize("algorithm", FORMS)
@pytest.mark.parametrize(
    ("rule", "order", "solver_type"),
    [(multistep, 2, "heun"), (multistep, 3, "heun"), (singlestep, 2, "heun"), (singlestep, 3, "heun")],
)
def test_exponential_rules_are_exact_for_polynomials_in_lambda(algorithm, rule, order, solver_type):
    """x_t = keep x_s + gain int_0^1 D(lambda(v)) dv with D of a lower degree than the order, by quadrature.

    The noise form of `sde-dpmsolver` integrates D as the ODE does and doubles it.
    """
    points = [scales_at(s) for s in (0.5, 0.62, 0.8, 0.9)]  # newest first
    if rule is multistep:
        now, then, known = points[1], points[0], points[1 : 1 + order]
    else:
        now, then, known = points[order], points[0], points[1 : 1 + order]
    form = FORMS[algorithm](now, then)
    gains = rule(form, known, order, solver_type)
    for power in range(order):

        def function(v, power=power):
            return (then.lam - math.log(1 + v * math.expm1(form.rate * form.h)) / form.rate) ** power

        expected = form.gain * integrate.quad(function, 0, 1)[0]
        assert sum(g * p.lam**power for g, p in zip(gains, known, strict=True)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("algorithm", FORMS)
def test_forms_keep_a_point_and_its_variance(algorithm):
    """Data at one point, with x_0 and eps known: means go along the path, and so does the variance of an SDE."""
    now, then = scales_at(0.7), scales_at(0.5)
    keep, gain, rate, noise, h = FORMS[algorithm](now, then)
    assert h == pytest.approx(math.log(then.alpha / then.sigma * now.sigma / now.alpha))
    if algorithm.endswith("++"):
        assert keep * now.alpha + gain == pytest.approx(then.alpha)
        assert (keep * now.sigma) ** 2 + noise**2 == pytest.approx(then.sigma**2)
    else:
        assert keep * now.alpha == pytest.approx(then.alpha)
        ode = then.sigma - keep * now.sigma  # the gain that takes eps from sigma_t to sigma_s
        assert gain == pytest.approx(2 * ode if noise else ode)
        if noise:  # the variance that sigma^2 / alpha^2 loses
            lost = (now.sigma / now.alpha) ** 2 - (then.sigma / then.alpha) ** 2
            assert noise**2 == pytest.approx(then.alpha**2 * lost)
    assert (noise > 0) == algorithm.startswith("sde")
    assert rate == {"dpmsolver++": -1, "sde-dpmsolver++": -2}.get(algorithm, 1)


def test_blocks_of_the_single_step_method():
    assert block_orders(6, 3, False, False) == [1, 2, 3, 1, 2, 3]
    assert block_orders(6, 3, False, True) == [1, 2, 3, 1, 2, 1]
    assert block_orders(7, 3, False, True) == [1, 2, 3, 1, 2, 3, 1]
    assert block_orders(8, 3, True, False) == [1, 2, 3, 1, 2, 3, 1, 1]
    assert block_orders(4, 2, False, True) == [1, 2, 1, 1]
    assert block_orders(5, 2, False, False) == [1, 2, 1, 2, 1]
    assert block_orders(3, 1, True, True) == [1, 1, 1]


# --- ingredients ------------------------------------------------------------------------------------------------------


def test_combinations_are_sums():
    base, states = torch.tensor([2.0]), [torch.tensor([3.0]), torch.tensor([5.0])]
    assert combine(Combination(0.5, (2.0, -1.0)), base, states).item() == 2.0
    assert combine(Combination(1.0, (0.0, 1.0)), base, states).item() == 7.0
    assert combine(Combination(1.0), base, states) is base


def test_scales_know_clean_data_and_pure_noise():
    path = RectifiedFlowScheduler().path
    assert scales(path, 0.0) == (1.0, 0.0, math.inf) and scales(path, 1.0) == (0.0, 1.0, -math.inf)
    assert scales(path, 0.25) == pytest.approx((0.75, 0.25, math.log(3)))
    assert scales(RectifiedFlowScheduler(path="ve").path, 0.0) == (1.0, 0.0, math.inf)


def test_the_posterior_of_a_table_has_its_betas():
    now, then = Scales(0.6, 0.8, 0.0), Scales(0.8, 0.6, 0.0)
    keep, gain, small, large = posterior(now, then, True)
    beta = 1 - 0.36 / 0.64
    assert (large, small) == pytest.approx((beta, 0.36 * beta / 0.64), rel=1e-6)
    assert (keep, gain) == pytest.approx((0.75 * 0.36 / 0.64, 0.8 * beta / 0.64), rel=1e-6)
    assert posterior(now, then) == pytest.approx((keep, gain, small, large), rel=1e-6)


def test_the_time_shift_by_hand():
    """t' = s t / (1 + (s - 1) t): 1/2 becomes 3/4 with s = 3."""
    scheduler = RectifiedFlowScheduler(shift=3.0)
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.tolist() == pytest.approx([1000, 750])
    scheduler.set_timesteps(sigmas=[0.5, 0.25])
    assert scheduler.timesteps.tolist() == pytest.approx([750, 500])


@pytest.mark.parametrize("path", ["straight", "discrete", "ve"])
@pytest.mark.parametrize(
    "values",
    [
        *(
            [math.nan],
            [500, math.nan, 100],
            [math.inf, 5],
            [5, -math.inf],
            [[500, 100]],
            [],
            "500",
            ["a"],
            5,
            [10**400],
        ),
        *([5, 500], [500, 500], [500, -5], [5000, 5], [1, 0.5, -1]),
    ],
)
def test_what_is_no_list_of_falling_times_is_refused_by_the_name_that_was_given(path, values):
    scheduler = RectifiedFlowScheduler(path=path)
    before = scheduler.timesteps.clone()
    for name in ("timesteps", "sigmas"):
        with pytest.raises(ValueError, match=f"^{name}="):
            scheduler.set_timesteps(**{name: values})
    assert torch.equal(scheduler.timesteps, before)


def test_times_of_a_list_are_refused_in_its_own_words():
    scheduler = RectifiedFlowScheduler(shift=3.0)
    with pytest.raises(ValueError, match=r"^sigmas=\[1, 0\.5, 0\]: these times are above 0 and at most 1\.$"):
        scheduler.set_timesteps(sigmas=[1, 0.5, 0])
    with pytest.raises(ValueError, match=r"^sigmas=\[0\.5, 1\]: strictly falling numbers"):
        scheduler.set_timesteps(sigmas=[0.5, 1])
    with pytest.raises(ValueError, match=r"^timesteps=\[2000, 5\]: the network has 1000 time steps"):
        scheduler.set_timesteps(timesteps=[2000, 5])
    with pytest.raises(ValueError, match=r"^timesteps=\[999, 5\]: strictly rising numbers"):
        DDIMInverseScheduler().set_timesteps(timesteps=[999, 5])
    with pytest.raises(ValueError, match=r"^Give one of"):
        scheduler.set_timesteps(0, timesteps=[5])


def test_a_list_for_the_inverse_rises_from_clean_data():
    for corrector in (True, False):
        scheduler = DDIMInverseScheduler(corrector=corrector)
        scheduler.set_timesteps(timesteps=[100, 400, 900])
        assert scheduler.timesteps.tolist() == [100, 400, 900]


def test_the_ends_of_steps_of_a_flow_map_by_hand():
    """On a table t = 0 is before the first entry, whose time step is the least that a network knows."""
    for path, ends in (("straight", [750, 500, 250, 0]), ("discrete", [749, 499, 249, 0])):
        scheduler = RectifiedFlowScheduler(solver="flow_map", path=path, prediction_type="v_prediction")
        scheduler.set_timesteps(timesteps=[1000, 750, 500, 250] if path == "straight" else [999, 749, 499, 249])
        assert scheduler.r_timesteps.tolist() == ends


@pytest.mark.parametrize("shift", [0.1, 0.3, 1.0, 3.0, 7.3])
def test_the_noisiest_sigma_is_a_time_with_any_shift(shift):
    """In doubles .1 / (1 + (.1 - 1)) is above 1."""
    scheduler = RectifiedFlowScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    assert scheduler.timesteps.tolist() == pytest.approx([1000, 1000 * shift / (1 + shift)])


def test_a_start_without_the_data_is_refused():
    """At t = 1 of the straight path x is eps, so eps says nothing of the data, and the SDE's drift is infinite."""
    for cls in (RectifiedFlowScheduler, DPMSolverPlusPlusScheduler, DDPMScheduler):
        scheduler = cls.from_config({"path": "straight", "prediction_type": "epsilon"})
        with pytest.raises(ValueError, match=r"sigmas=.*'epsilon' says nothing of the data above time step 999"):
            scheduler.set_timesteps(sigmas=[1.0, 0.5])
        scheduler.set_timesteps(sigmas=[0.999, 0.5])
    table = {"path": "discrete", "rescale_betas_zero_snr": True, "prediction_type": "epsilon"}
    with pytest.raises(ValueError, match="above time step 998"):
        DDPMScheduler.from_config(table).set_timesteps(timesteps=[999, 500])
    sde = ScoreSDEScheduler.from_config({"path": "straight", "prediction_type": "v_prediction"})
    with pytest.raises(ValueError, match=r"^sigmas=.* can't start at time step 1000, where alpha is 0"):
        sde.set_timesteps(sigmas=[1.0, 0.5])


@pytest.mark.parametrize("cls", [RectifiedFlowScheduler, DPMSolverPlusPlusScheduler])
def test_samples_of_a_path_begin_as_noisy_as_it_ends(cls):
    assert cls(path="straight", prediction_type="flow_prediction").init_noise_sigma == pytest.approx(1)
    assert cls(path="ve", prediction_type="epsilon").init_noise_sigma == pytest.approx(math.sqrt(1 + 50**2))
