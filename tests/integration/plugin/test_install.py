"""The installed package, as a wheel and editable, each in an environment of its own."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HOOK = {"anomalib_ccl.plugin", "anomalib_ccl.plugin.import_hook", "anomalib_ccl.plugin.switch"}
ROOT = Path(__file__).parents[3]
KINDS = ["wheel", "editable"]
NAMES = ["CCL", "anomalib.models.CCL", "anomalib_ccl.CCL"]
WARNING = "RuntimeWarning: anomalib-ccl could not plug itself into anomalib"


@dataclass(frozen=True)
class Environment:
    """A virtual environment that shares the libraries of this one, but none of its start-up hooks."""

    folder: Path
    python: Path
    site_packages: Path

    @classmethod
    def create(cls, folder: Path) -> "Environment":
        builder = venv.EnvBuilder()
        builder.create(folder)
        python = Path(builder.ensure_directories(folder).env_exe)
        ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site_packages = Path(subprocess.check_output(ask, text=True).strip())
        # A .pth file with nothing but paths: .pth files found under those are not processed.
        libraries = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        (site_packages / "libraries.pth").write_text("\n".join(libraries))
        return cls(folder, python, site_packages)

    def start(self, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess:
        """Run the interpreter outside any checkout, without this process's own Python settings."""
        settings = ("PYTHON", "ANOMALIB")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            env=inherited | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, code: str, **variables: str) -> tuple[dict, str]:
        """Run code; return the dictionary ``found`` that it fills, and what it wrote to stderr."""
        code = f"import json\nfound = {{}}\n{textwrap.dedent(code)}\nprint('\\n' + json.dumps(found))"
        done = self.start("-c", code, **variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    def pip(self, *arguments: str | Path) -> None:
        done = self.start("-m", "pip", "--disable-pip-version-check", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, *arguments: str | Path) -> None:
        # Forced: the libraries that this environment sees may hold an installation of the project, too.
        self.pip("install", "--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall", *arguments)

    def modules_at_start(self) -> set[str]:
        return set(self.run("import sys\nfound['modules'] = list(sys.modules)")[0]["modules"])


@dataclass(frozen=True)
class Installation:
    """An environment with the plug-in, the package folder to be used, and what a start now loads more."""

    environment: Environment
    package: Path
    loaded_at_start: set[str]


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


def install(kind: str, source: Path, wheel: Path, folder: Path) -> Installation:
    environment = Environment.create(folder / "environment")
    before = environment.modules_at_start()
    if kind == "wheel":
        environment.install(wheel)
        package = environment.site_packages / "anomalib_ccl"
    else:
        # A copy of its own, because an editable installation writes into its source.
        package = shutil.copytree(source, folder / "editable") / "anomalib_ccl"
        environment.install("-e", package.parent)
    return Installation(environment, package, environment.modules_at_start() - before)


@pytest.fixture(scope="module", params=KINDS)
def installation(request, source, wheel, tmp_path_factory) -> Installation:
    return install(request.param, source, wheel, tmp_path_factory.mktemp(request.param))


@contextlib.contextmanager
def broken(file: Path) -> Iterator[None]:
    text = file.read_text()
    file.write_text("raise RuntimeError('broken on purpose')\n")
    try:
        yield
    finally:
        file.write_text(text)


def test_wheel_holds_the_package_and_the_start_up_file_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "anomalib_ccl",
        "anomalib_ccl.pth",
    }
    assert {"anomalib_ccl/py.typed", "anomalib_ccl/configs/model/ccl_lite0.yaml"} <= set(names)


def test_interpreter_start_loads_the_hook_and_nothing_else(installation):
    assert installation.loaded_at_start == {"anomalib_ccl", *HOOK}


def test_python_interface_finds_both_names(installation, tmp_path):
    found, errors = installation.environment.run(
        f"""
        from lightning.pytorch import Trainer
        from anomalib.data import get_datamodule
        from anomalib.models import get_model, list_models
        from anomalib.pipelines.benchmark.generator import BenchmarkJobGenerator

        small = {{"backbone": "resnet18", "pre_trained": False}}
        forms = ["CCL", "ccl", *({{"class_path": name}} for name in {NAMES})]
        found["models"] = [type(get_model(form, **small)).__name__ for form in forms]
        found["listed"] = [sorted(list_models(case)) for case in ("snake", "pascal", "title")]

        import anomalib_ccl
        from anomalib_ccl import CCL, MultiCategory
        found["file"] = anomalib_ccl.__file__
        found["version"] = anomalib_ccl.__version__
        found["same"] = type(get_model("CCL", **small)) is CCL

        root = str(anomalib_ccl.make_sample_dataset({str(tmp_path / "data")!r}))
        data = {{"class_path": "MultiCategory", "init_args": {{"root": root}}}}
        found["datamodule"] = type(get_datamodule(data)) is MultiCategory
        jobs = BenchmarkJobGenerator("cpu").generate_jobs(
            {{
                "seed": 1,
                "model": {{"class_path": {{"grid": {NAMES}}}, "init_args": small}},
                "data": data,
            }},
            None,
        )
        found["jobs"] = [[type(job.model).__name__, type(job.datamodule).__name__] for job in jobs]
        trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        found["callbacks"] = [type(callback).__name__ for callback in trainer.callbacks]
        """
    )
    assert found["models"] == ["CCL"] * 5
    for listed, spelling in zip(found["listed"], ["c_c_l", "CCL", "Ccl"], strict=True):
        assert spelling in listed
    assert found["file"] == str(installation.package / "__init__.py")
    assert found["version"] == "0.1.0"
    assert found["same"]
    assert found["datamodule"]
    assert found["jobs"] == [["CCL", "MultiCategory"]] * 3
    assert found["callbacks"].count("CategoryReport") == 1
    assert "anomalib-ccl" not in errors


def test_all_commands_take_both_names_from_arguments_and_files(installation, tmp_path):
    for name in NAMES:
        model = {"class_path": name, "init_args": {"backbone": "resnet18", "pre_trained": False}}
        config = {"model": model, "data": {"class_path": "MultiCategory"}}
        # JSON is YAML.
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config))
    found, errors = installation.environment.run(
        f"""
        from anomalib.cli.cli import AnomalibCLI

        parser = AnomalibCLI(["install"], run=False).parser
        for command in ("train", "fit", "validate", "test", "predict", "export"):
            required = ["--export_type", "openvino"] if command == "export" else []
            for name in {NAMES}:
                for arguments in (
                    ["--model", name, "--model.backbone", "resnet18", "--data", "MultiCategory"],
                    ["--config", {str(tmp_path)!r} + f"/{{name}}.yaml"],
                ):
                    config = parser.parse_args([command, *required, *arguments])[command]
                    found[f"{{command}} {{' '.join(arguments)}}"] = [
                        config.model.class_path.rsplit(".", 1)[-1],
                        config.model.init_args.backbone,
                        config.data.class_path.rsplit(".", 1)[-1],
                    ]
        """
    )
    assert len(found) == 6 * 3 * 2
    assert {tuple(parsed) for parsed in found.values()} == {("CCL", "resnet18", "MultiCategory")}
    assert "anomalib-ccl" not in errors


def test_configs_are_found_by_name_from_any_folder(installation):
    found, _ = installation.environment.run(
        """
        from anomalib.cli.cli import AnomalibCLI

        for model, data in (("ccl_lite0", "sample.yaml"), ("configs/model/ccl_lite0.yaml", "configs/data/sample.yaml")):
            cli = AnomalibCLI(["train", "--config", model, f"--data={data}"], run=False)
            found[model] = [cli.model.hparams["backbone"], cli.config.train.data.init_args.root]
        """
    )
    assert list(found.values()) == [["tf_efficientnet_lite0", "./datasets/sample"]] * 2


def test_broken_model_gives_one_warning_and_leaves_anomalib_working(installation):
    with broken(installation.package / "model" / "lightning_model.py"):
        found, errors = installation.environment.run(
            """
            from anomalib.data import MultiCategory
            from anomalib.engine import Engine
            from anomalib.models import get_model, list_models
            found["listed"] = sorted(list_models())
            found["model"] = type(get_model("Padim", backbone="resnet18", pre_trained=False)).__name__
            """
        )
    assert "padim" in found["listed"]
    assert "c_c_l" not in found["listed"]
    assert found["model"] == "Padim"
    assert errors.count(WARNING) == 1
    assert "Cause: RuntimeError: broken on purpose" in errors
    assert "ANOMALIB_CCL_DISABLE=1" in errors


def test_broken_package_does_not_disturb_the_start_of_an_interpreter(installation):
    with broken(installation.package / "__init__.py"):
        done = installation.environment.start("-c", "print('started')")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "started", "")


def test_variable_switches_the_plug_in_off(installation):
    found, errors = installation.environment.run(
        """
        import sys
        from anomalib import data, models
        found["listed"] = sorted(models.list_models())
        found["registered"] = hasattr(models, "CCL") or hasattr(data, "MultiCategory")
        found["loaded"] = [name for name in sys.modules if name.startswith("anomalib_ccl.")]
        """,
        ANOMALIB_CCL_DISABLE="1",
    )
    assert "c_c_l" not in found["listed"]
    assert not found["registered"]
    assert set(found["loaded"]) == HOOK
    assert "anomalib-ccl" not in errors


@pytest.mark.parametrize("kind", KINDS)
def test_uninstalling_leaves_nothing_behind(kind, source, wheel, tmp_path):
    environment = install(kind, source, wheel, tmp_path).environment
    used = environment.start("-c", "import anomalib_ccl.plugin.registry")
    assert used.returncode == 0, used.stderr
    assert list(environment.site_packages.rglob("*anomalib_ccl*"))
    environment.pip("uninstall", "--yes", "anomalib-ccl")
    assert not list(environment.site_packages.rglob("*anomalib_ccl*"))
    done = environment.start("-c", "import sys; print('anomalib_ccl' in sys.modules)")
    assert (done.stdout.strip(), done.stderr) == ("False", "")
