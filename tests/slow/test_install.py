"""The installed package, as a wheel and editable, in environments of their own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOOK = {"anomalib_ccl", "anomalib_ccl.registration", "anomalib_ccl.registration.import_hook"}
MODULES = "import sys; print(*sys.modules)"


class Environment:
    """A virtual environment that shares the libraries of this one, but none of its start-up hooks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        builder = venv.EnvBuilder()
        builder.create(folder)
        self.python = Path(builder.ensure_directories(folder).env_exe)
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        (self.site_packages,) = (Path(line) for line in self.start("-c", ask).stdout.splitlines())
        # A .pth file with nothing but paths: .pth files found under those are not processed.
        libraries = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        (self.site_packages / "libraries.pth").write_text("\n".join(libraries))
        self.before = set(self.start("-c", MODULES).stdout.split())

    def start(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run the interpreter outside any checkout, without this process's own Python settings."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ANOMALIB"))}
        command = [self.python, *arguments]
        return subprocess.run(command, cwd=self.folder, env=inherited, capture_output=True, text=True, check=False)

    def pip(self, *arguments: str | Path) -> None:
        done = self.start("-m", "pip", "--disable-pip-version-check", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, *arguments: str | Path) -> None:
        # Forced: the libraries that this environment sees may hold an installation of the project, too.
        self.pip("install", "--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall", *arguments)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution, so that a file missing there is missed by all tests."""
    folder = tmp_path_factory.mktemp("source")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder / "dist"]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (archive,) = (folder / "dist").iterdir()
    shutil.unpack_archive(archive, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("installed"))
    environment.install(wheel)
    return environment


def test_wheel_holds_the_package_and_the_start_up_file_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert roots == {"anomalib_ccl", "anomalib_ccl.pth"}
    assert {"anomalib_ccl/py.typed", "anomalib_ccl/reports/report.html.jinja"} <= set(names)


def test_interpreter_start_loads_the_hook_and_nothing_else(installed: Environment) -> None:
    assert set(installed.start("-c", MODULES).stdout.split()) - installed.before == HOOK


INTERFACE = """
import json
from lightning.pytorch import Trainer
from anomalib.data import get_datamodule
from anomalib.models import get_model, list_models
from anomalib.pipelines.benchmark.generator import BenchmarkJobGenerator
import anomalib_ccl

small = {"backbone": "resnet18", "pre_trained": False}
paths = ["CCL", "anomalib.models.CCL", "anomalib_ccl.CCL"]
data = {"class_path": "MultiCategory", "init_args": {"root": "data"}}
models = {"class_path": {"grid": paths}, "init_args": small}
anomalib_ccl.make_sample_dataset("data")
jobs = list(BenchmarkJobGenerator("cpu").generate_jobs({"seed": 1, "model": models, "data": data}, None))
found = {
    "models": [type(get_model(x, **small)).__name__ for x in ("CCL", "ccl", *({"class_path": y} for y in paths))],
    "listed": [name in list_models(case) for case, name in (("snake", "c_c_l"), ("pascal", "CCL"), ("title", "Ccl"))],
    "same": [type(get_datamodule(data)) is anomalib_ccl.MultiCategory, type(jobs[0].model) is anomalib_ccl.CCL],
    "jobs": [[type(job.model).__name__, type(job.datamodule).__name__] for job in jobs],
    "callbacks": [type(callback).__name__ for callback in Trainer(logger=False).callbacks].count("Report"),
    "file": anomalib_ccl.__file__,
}
print(json.dumps(found))
"""


def test_python_interface_finds_all_names(installed: Environment) -> None:
    done = installed.start("-c", INTERFACE)
    assert done.returncode == 0, done.stderr
    assert "anomalib-ccl" not in done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "models": ["CCL"] * 5,
        "listed": [True] * 3,
        "same": [True] * 2,
        "jobs": [["CCL", "MultiCategory"]] * 3,
        "callbacks": 1,
        "file": str(installed.site_packages / "anomalib_ccl/__init__.py"),
    }
    assert (installed.python.parent / "anomalib-ccl").is_file()


def test_an_editable_installation_has_the_hook_too_and_uninstalling_leaves_nothing(
    source: Path, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "environment")
    # A copy of its own, because an editable installation writes into its source.
    environment.install("-e", shutil.copytree(source, tmp_path / "editable"))
    assert set(environment.start("-c", MODULES).stdout.split()) - environment.before == HOOK
    package = tmp_path / "editable/anomalib_ccl/__init__.py"
    package.write_text("raise RuntimeError('broken on purpose')\n")
    done = environment.start("-c", "print('started')")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "started", "")
    environment.pip("uninstall", "--yes", "anomalib-ccl")
    assert not list(environment.site_packages.rglob("*anomalib_ccl*"))
    assert set(environment.start("-c", MODULES).stdout.split()) == environment.before
