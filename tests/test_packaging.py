"""The wheel: what it holds, and that it works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from setuptools import find_packages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("pipelines", "training")
"""Packages of hfgen that lie at the top of the checkout."""

SAMPLE = """
import sys
from hfgen import DenoisingPipeline, DiTModel, HFGenPipeline, RectifiedFlowScheduler

denoiser = DiTModel(
    sample_size=8, in_channels=1, out_channels=1, hidden_size=32, num_layers=1, num_attention_heads=2
)
DenoisingPipeline(denoiser=denoiser, scheduler=RectifiedFlowScheduler()).save_pretrained(sys.argv[1])
pipeline = HFGenPipeline.from_pretrained(sys.argv[1])
images = pipeline(batch_size=2, num_inference_steps=2, output_type="pt").images
assert type(pipeline) is DenoisingPipeline, type(pipeline)
assert images.shape == (2, 1, 8, 8) and images.isfinite().all()
"""

IMPORTS = """
import hfgen, hfgen.pipelines, hfgen.training
from importlib.resources import files
print(*(module.__file__ for module in (hfgen, hfgen.pipelines, hfgen.training)), sep="\\n")
print(*sorted(file.name for file in files("hfgen.training").joinpath("configs").iterdir()))
"""


def run(*command: object, cwd: Path) -> str:
    """Run a command away from the checkout, with nothing of it on the path; what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    env.update(PIP_DISABLE_PIP_VERSION_CHECK="1", HF_HUB_OFFLINE="1")
    result = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def sources() -> dict[str, set[str]]:
    """Package -> its Python files as the tree has them."""
    packages: dict[str, set[str]] = {}
    for top in ("hfgen", *MAPPED):
        for path in sorted((ROOT / top).rglob("*.py")):
            folder = path.parent.relative_to(ROOT).parts
            if folder[:2] not in [("hfgen", name) for name in MAPPED]:
                package = ".".join(folder if folder[0] == "hfgen" else ("hfgen", *folder))
                packages.setdefault(package, set()).add(path.name)
    return packages


def test_every_folder_is_a_package() -> None:
    """Packages are found by their `__init__.py`; a new family is packaged without a line in pyproject.toml."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = find_packages(str(ROOT), **setuptools["packages"]["find"])
    assert sorted(found) == sorted(sources())
    assert all("__init__.py" in names for names in sources().values())
    assert setuptools["package-dir"] == {f"hfgen.{name}": name for name in MAPPED}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution of a copy, so that the checkout stays clean."""
    copy, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for folder in ("hfgen", *MAPPED, "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / file, copy)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, cwd=copy)
    (built,) = dist.glob("*.whl")
    return built


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    expected = {f"{package.replace('.', '/')}/{name}" for package, names in sources().items() for name in names}
    expected |= {f"hfgen/metrics/weights/{path.name}" for path in (ROOT / "hfgen/metrics/weights").iterdir()}
    data = [path for path in (ROOT / "hfgen/compare").iterdir() if path.suffix in (".jinja", ".json")]
    expected |= {f"hfgen/compare/{path.name}" for path in data}
    expected |= {f"hfgen/data/mnist5k/{split}.parquet" for split in ("train", "test")}
    expected |= {f"hfgen/training/configs/{path.name}" for path in (ROOT / "training" / "configs").glob("*.yaml")}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {name for name in names if ".dist-info/" not in name} == expected
        for package in MAPPED:
            real = (ROOT / package / "__init__.py").read_bytes()
            assert archive.read(f"hfgen/{package}/__init__.py") == real
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        headers = archive.read(metadata).decode().splitlines()
    licences = "License-Expression: Apache-2.0 AND CC-BY-SA-3.0"
    assert {"Name: hfgen", licences, "Requires-Python: >=3.10"} <= set(headers)
    assert all(any(name.endswith(f"/{file}") for name in names) for file in ("LICENSE", "NOTICE"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a clean environment with the wheel in it.

    Dependencies are found where this process has them; a .pth file lends the folder but does not follow the .pth files
    in it, so an editable hfgen there stays out of sight.
    """
    home = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=home)
    (site,) = home.glob("lib/python*/site-packages")
    lent = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "lent.pth").write_text("\n".join(lent) + "\n")
    return home / "bin"


def test_the_wheel_gives_the_command(installed: Path, tmp_path: Path) -> None:
    assert "usage" in run(installed / "hfgen", "--help", cwd=tmp_path).lower()


def test_the_wheel_gives_recipes_by_name(installed: Path, tmp_path: Path) -> None:
    shown = run(installed / "hfgen", "recipes", "mnist", cwd=tmp_path)
    assert "hfgen train diffusion --config mnist" in shown and str(installed.parent) in shown
    code = "from hfgen.training.train_diffusion import main; main(['--config', 'mnist', '--print_config'])"
    assert "dataset: ylecun/mnist" in run(installed / "python", "-c", code, cwd=tmp_path)


def test_the_wheel_gives_its_data(installed: Path, tmp_path: Path) -> None:
    shown = run(installed / "hfgen", "data", "mnist5k", "--grid", tmp_path / "grid.png", cwd=tmp_path)
    assert "4,000" in shown and "28 × 28" in shown


def test_the_wheel_gives_pipelines_and_training(installed: Path, tmp_path: Path) -> None:
    *files, configs = run(installed / "python", "-c", IMPORTS, cwd=tmp_path).splitlines()
    assert all(Path(file).is_relative_to(installed.parent) for file in files)
    assert "quickstart.yaml" in configs.split()


def test_the_wheel_samples_from_a_saved_folder(installed: Path, tmp_path: Path) -> None:
    run(installed / "python", "-c", SAMPLE, tmp_path / "model", cwd=tmp_path)


def test_a_bare_checkout_has_both_too(installed: Path) -> None:
    code = "import hfgen.pipelines as p, hfgen.training as t; print(*p.__path__, *t.__path__, sep='\\n')"
    found = run(installed / "python", "-c", code, cwd=ROOT).splitlines()
    assert found == [str(ROOT / name) for name in MAPPED]
