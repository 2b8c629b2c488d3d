"""Points in the plane: densities and scores in closed form, learned fields that approach them, and the animation."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from hfgen import cli, paths
from hfgen.commands import explain as command
from hfgen.explain import drawing, families
from hfgen.explain.families import FAMILIES, FRAMES, SCORE, VELOCITY, DemoSetup, denoiser_demo
from hfgen.explain.landscape import HOT
from hfgen.explain.networks import PointDenoiser
from hfgen.explain.problems import PROBLEMS, Mixture, problem

F64 = torch.float64
each_problem = pytest.mark.parametrize("name", PROBLEMS)


def points(count, seed=0):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- exact references -------------------------------------------------------------------------------------------------


@each_problem
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.05), (0.6, 0.4), (0.01, 1.0)])
def test_densities_integrate_to_one(name, alpha, sigma):
    span = 1.2 * alpha + 6 * sigma
    axis = torch.linspace(-span, span, 201, dtype=F64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)
    mass = problem(name).log_prob(grid, alpha, sigma).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(mass) == pytest.approx(1, abs=1e-6)


@each_problem
def test_densities_are_those_of_the_samples_with_noise(name):
    """The share of points alpha x_0 + sigma eps in each half and quarter of the plane, against the density's."""
    source, alpha, sigma, count = problem(name), 0.8, 0.3, 200_000
    generator = torch.Generator().manual_seed(0)
    x = alpha * source.sample(count, generator).double() + sigma * points(count)
    axis = torch.linspace(-2.5, 2.5, 251, dtype=F64)[:-1] + 0.01
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)
    density = source.log_prob(grid, alpha, sigma).exp() * 0.02**2
    for region in (
        lambda p: p[:, 0] > 0.2,
        lambda p: (p[:, 0] > 0) & (p[:, 1] > 0.1),
        lambda p: p.norm(dim=1) < 0.5,
    ):
        share = region(x).double().mean().item()
        assert share == pytest.approx(density[region(grid)].sum().item(), abs=5 * math.sqrt(0.25 / count) + 4e-3)


def test_the_score_of_a_mixture_is_the_weighted_pull_of_its_centres():
    """sum_k w_k(x) (alpha c_k - x) / v, by NumPy."""
    source, alpha, sigma, x = problem("eight_gaussians"), 0.7, 0.5, points(50)
    assert isinstance(source, Mixture)
    v = (alpha * source.deviation) ** 2 + sigma**2
    offsets = alpha * source.centres.numpy()[None] - x.numpy()[:, None]  # (N, K, 2)
    weights = np.exp(-(offsets**2).sum(-1) / (2 * v))
    weights /= weights.sum(1, keepdims=True)
    expected = (weights[..., None] * offsets).sum(1) / v
    np.testing.assert_allclose(source.score(x, alpha, sigma).numpy(), expected, rtol=1e-10, atol=1e-12)


@each_problem
def test_scores_far_from_the_data_are_finite_and_point_to_them(name):
    x = torch.tensor([[40.0, 0.0], [0.0, -40.0]], dtype=F64)
    score = problem(name).score(x, 0.9, 0.1)
    assert score.isfinite().all()
    assert score[0, 0] < 0 < score[1, 1]


@pytest.fixture(scope="module")
def demos():
    """(few steps, many steps) of each denoiser on eight Gaussians."""
    torch.manual_seed(0)
    rows = {"cosine_vp": ("v_prediction", SCORE), "straight": ("flow_prediction", VELOCITY)}
    result = {}
    for path, (kind, arrows) in rows.items():
        for steps in (20, 400):
            setup = DemoSetup(problem("eight_gaussians"), steps, num_samples=100)
            result[path, steps] = denoiser_demo(setup, "x", path, kind, "ddim", arrows)
    return result


def distance(demo, path, t):
    """Mean squared error of the learned arrows over the mean square of the exact ones, where points are at time t."""
    curve, generator = paths.path_from_config(families.PATHS[path]), torch.Generator().manual_seed(7)
    x_0 = problem("eight_gaussians").sample(2000, generator).double()
    x = curve.mix(x_0, points(2000, 8), torch.tensor(t, dtype=F64))
    learned, exact = demo.field(x, t), demo.exact_field(x, t)
    return ((learned - exact).square().mean() / exact.square().mean()).item()


@pytest.mark.parametrize("path", ["cosine_vp", "straight"])
def test_learned_fields_approach_the_exact_ones(demos, path):
    for t in (0.3, 0.5, 0.8):
        few, many = (distance(demos[path, steps], path, t) for steps in (20, 400))
        assert many < 0.25 and many < few / 2


@pytest.mark.parametrize(
    ("path", "kind", "arrows"), [("cosine_vp", "v_prediction", SCORE), ("straight", "v_prediction", VELOCITY)]
)
def test_a_perfect_network_has_the_exact_field(path, kind, arrows, monkeypatch):
    """Whatever it predicts: the conversion of its prediction to arrows is that of the exact score."""
    curve, source = paths.path_from_config(families.PATHS[path]), problem("moons")

    class Perfect(PointDenoiser):
        def forward(self, sample, timestep, class_labels=None):
            point = curve(curve.time_of(timestep.double().reshape(-1)[0]).clamp(0.01, 0.999))
            x, alpha, sigma = sample.flatten(1).double(), float(point.alpha), float(point.sigma)
            eps = -sigma * source.score(x, alpha, sigma)
            output = paths.compose(kind, point, (x - sigma * eps) / alpha, eps)
            return type("Output", (), {"sample": output[:, :, None, None].to(sample.dtype)})

    monkeypatch.setattr(DemoSetup, "train", lambda self, networks, objective, **options: ({"denoiser": Perfect()}, 0.0))
    demo = denoiser_demo(DemoSetup(source, num_samples=300), "x", path, kind, "ddim", arrows)
    x = points(100).float().double()
    for t in (0.2, 0.6, 0.9):
        torch.testing.assert_close(demo.field(x, t), demo.exact_field(x, t), rtol=1e-4, atol=1e-4)
    assert families.quality(demo, DemoSetup(source, num_samples=300))["inside"] > 0.9


# --- families and the picture -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def demo(request):
    torch.manual_seed(0)
    return FAMILIES[request.param](DemoSetup(problem("moons"), steps=3, num_samples=50))


def test_each_family_goes_from_the_same_noise_to_its_samples(demo):
    assert len(demo.times) == FRAMES + 1 and demo.positions.shape == (FRAMES + 1, 50, 2)
    torch.testing.assert_close(demo.positions[0], DemoSetup(problem("moons"), num_samples=50).noise(), rtol=0, atol=0)
    assert demo.times[0] > 0.99 and demo.times[-1] == 0
    assert all(a > b for a, b in zip(demo.times, demo.times[1:], strict=False))
    steps = np.diff(demo.times)
    np.testing.assert_allclose(steps, -1 / FRAMES, atol=2e-3)  # columns keep pace
    for t in (1.0, 0.5, 0.0):
        x = points(9)
        for field in filter(None, (demo.field, demo.exact_field)):
            assert field(x, t).shape == (9, 2) and field(x, t).isfinite().all()
        assert demo.density(x, t).shape == (9,)


def test_the_density_of_a_flow_is_bent_step_by_step():
    """It integrates to one in each frame, is normal at first, and has the points that the frame shows."""
    torch.manual_seed(0)
    demo = FAMILIES["flow"](DemoSetup(problem("moons"), steps=200, num_samples=2000))  # earlier, points lie far out
    axis = torch.linspace(-40, 40, 401, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    for frame in (0, 12, 32):
        density = demo.density(grid, demo.times[frame]).exp() * 0.2**2
        assert float(density.sum()) == pytest.approx(1, abs=0.03)
        share = (demo.positions[frame][:, 0] > 0.5).double().mean().item()
        assert share == pytest.approx(float(density[grid[:, 0] > 0.5].sum()), abs=0.05)
    expected = -grid.square().sum(1) / 2 - math.log(2 * math.pi)
    torch.testing.assert_close(demo.density(grid, 1.0), expected, atol=1e-4, rtol=1e-5)


def test_the_density_of_an_autoregressive_model_is_that_of_its_points_coordinate_by_coordinate():
    torch.manual_seed(0)
    demo = FAMILIES["ar"](DemoSetup(problem("moons"), steps=60, num_samples=2000))
    axis = torch.linspace(-10, 10, 201, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    for frame in (0, 16, 32):
        density = demo.density(grid, demo.times[frame]).exp() * 0.1**2
        assert float(density.sum()) == pytest.approx(1, abs=0.03)
        for axis_number in (0, 1):
            share = (demo.positions[frame][:, axis_number] > 0.45).double().mean().item()
            assert share == pytest.approx(float(density[grid[:, axis_number] > 0.45].sum()), abs=0.05)


def test_training_is_the_same_twice():
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(FAMILIES["rectified_flow"](DemoSetup(problem("moons"), steps=5, num_samples=20)).positions)
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def test_quality_of_the_data_and_of_other_points():
    setup = DemoSetup(problem("checkerboard"), num_samples=800)
    data = setup.problem.sample(800, torch.Generator().manual_seed(5))
    attributes = {"title": "", "method": "", "field": None, "field_name": "", "seconds": 0.0}
    good = families.quality(families.one_pass_demo(setup, data, **attributes), setup)
    assert good["inside"] > 0.95 and good["coverage"] > 0.9
    one_field = data[(data[:, 0] < -0.5) & (data[:, 1] < -0.5)].repeat(20, 1)[:800]
    poor = families.quality(families.one_pass_demo(setup, one_field, **attributes), setup)
    assert poor["inside"] > 0.95 and poor["coverage"] < 0.25
    far = families.quality(families.one_pass_demo(setup, data + 3, **attributes), setup)
    assert far["inside"] == 0 and far["coverage"] == 0


def test_the_command_writes_an_animation(tmp_path, capsys):
    target = tmp_path / "new" / "a.gif"
    words = ["--dataset", "moons", "--families", "vae, diffusion", "--max_train_steps", "2", "--output", str(target)]
    cli.main(["explain", *words])
    out = capsys.readouterr().out
    assert "VAE" in out and "Diffusion" in out and "GAN" not in out
    with Image.open(target) as gif:
        assert gif.n_frames == FRAMES + 1
        first = np.array(gif.convert("RGB")).astype(int)
        gif.seek(FRAMES)
        assert np.abs(np.array(gif.convert("RGB")) - first).max() > 50


def test_a_page_holds_all_frames_and_needs_no_network(tmp_path):
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(5)]
    drawing.save_html(frames, tmp_path / "a.html", "a < b", "text")
    page = (tmp_path / "a.html").read_text()
    assert page.count('"UklGR') == 5  # RIFF in base64: WebP
    assert "a &lt; b" in page and "http" not in page and "src=" not in page.split("<script>")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--dataset", "swiss"],
            "--dataset 'swiss' is not known. Choose one of: eight_gaussians, moons, checkerboard.",
        ),
        (
            ["--families", "vae,gam"],
            "--families 'vae,gam': no gam. "
            "Choose from diffusion, rectified_flow, flow_map, vae, gan, flow, ar, energy.",
        ),
        (["--output", "a.mp4"], "--output 'a.mp4' must end in .gif or .html."),
        (["--max_train_steps", "0"], "--max_train_steps 0 must be at least 1."),
    ],
)
def test_refusals_name_value_and_fix(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(["explain", *words])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_help_names_all_families_and_problems():
    fields = {name: field.metadata["help"] for name, field in command.ExplainOptions.__dataclass_fields__.items()}
    assert all(name in fields["families"] for name in FAMILIES)
    assert all(name in fields["dataset"] for name in PROBLEMS)


def test_a_flow_map_jumps_from_the_noise_to_each_time():
    """Each frame is one evaluation; a trained one has more points on the data than an untrained one."""
    shares = []
    for steps in (20, 300):
        torch.manual_seed(0)
        setup = DemoSetup(problem("eight_gaussians"), steps, num_samples=200)
        demo = FAMILIES["flow_map"](setup)
        x, noise = demo.positions, setup.noise()
        torch.testing.assert_close(x[-1] - noise, demo.field(noise, 1.0).float(), rtol=1e-4, atol=1e-5)
        centres = problem("eight_gaussians").centres.float()
        shares.append(torch.cdist(x[-1], centres).min(1).values.mean())
    assert shares[1] < 0.7 * shares[0]


def test_the_chain_of_an_energy_cools_down_on_its_landscape():
    """Points end nearer to the data than noise is, lower on the landscape, and the slope is that of the heights."""
    torch.manual_seed(0)
    setup = DemoSetup(problem("eight_gaussians"), steps=200, num_samples=200)
    demo = FAMILIES["energy"](setup)
    centres, x = problem("eight_gaussians").centres.float(), demo.positions
    far = [torch.cdist(x[frame], centres).min(1).values.mean() for frame in (0, -1)]
    assert far[1] < 0.6 * far[0]
    assert demo.density(x[-1], 0.0).mean() > demo.density(x[0], 0.0).mean()
    a, h = points(5), 1e-3
    for axis in (0, 1):
        step = h * torch.eye(2, dtype=F64)[axis]
        slope = (demo.density(a + step, 1.0) - demo.density(a - step, 1.0)) * HOT / (2 * h)
        torch.testing.assert_close(demo.field(a, 0.3)[:, axis], slope, rtol=0.05, atol=0.02)
