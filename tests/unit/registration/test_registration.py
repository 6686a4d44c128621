"""The import hook, the registration, and the lazy public names, each in an interpreter without anomalib."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path

import anomalib
import pytest

import anomalib_ccl
from anomalib_ccl.registration import import_hook

PACKAGE = Path(anomalib_ccl.__file__).parent
# One of each room; import-linter sees to it that no two modules import each other.
MODULES = [
    "",
    *(f".{name}" for name in ("cli", "recalibrate", "lightning_model", "reports.report", "export.inferencer")),
]
MODULES += [".training.calibrate", ".classes.labels", ".data.multi_category", ".metrics.category", ".model.torch_model"]
ANOMALIB = ["anomalib.data", "anomalib.models", "anomalib.engine", "anomalib.cli.cli", "anomalib.pipelines"]
FIRST = [*ANOMALIB, *(f"anomalib_ccl{name}" for name in MODULES)]


@pytest.fixture(scope="module")
def run_fresh(run, tmp_path_factory) -> Callable[[str], str]:
    """Run a snippet where neither anomalib nor this package have been imported; return what it wrote to stderr."""
    folder = tmp_path_factory.mktemp("fresh")

    def run_snippet(snippet: str) -> str:
        done = run("python", "-c", textwrap.dedent(snippet), cwd=folder, fresh=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run_snippet


# What the start of an interpreter loads.
HOOK = {"anomalib_ccl", "anomalib_ccl.registration", "anomalib_ccl.registration.import_hook"}

REGISTERED = """
import sys, anomalib.data, anomalib.models, anomalib_ccl
assert anomalib.models.CCL is anomalib_ccl.CCL
assert anomalib.data.MultiCategory is anomalib_ccl.MultiCategory
assert anomalib.models.__all__.count("CCL") == 1
assert anomalib.data.__all__.count("MultiCategory") == 1
assert "anomalib_ccl" in anomalib.models.ALLOWED_MODULES
assert not [finder for finder in sys.meta_path if type(finder).__name__ == "RegistryFinder"]
"""

NOT_REGISTERED = """
import sys, anomalib.data, anomalib.models, anomalib_ccl
assert not hasattr(anomalib.models, "CCL")
assert not hasattr(anomalib.data, "MultiCategory")
assert "anomalib_ccl" not in anomalib.models.ALLOWED_MODULES
assert not [finder for finder in sys.meta_path if type(finder).__name__ == "RegistryFinder"]
assert anomalib_ccl.CCL.__name__ == "CCL"
assert anomalib_ccl.MultiCategory.__name__ == "MultiCategory"
"""


@pytest.mark.parametrize("first", FIRST)
def test_both_names_are_registered_whatever_is_imported_first(run_fresh, first):
    errors = run_fresh(f"import anomalib_ccl, {first}\n{REGISTERED}")
    assert "anomalib-ccl" not in errors


@pytest.mark.parametrize("first", ANOMALIB)
def test_both_names_are_registered_at_once_if_anomalib_is_there_already(run_fresh, first):
    errors = run_fresh(f"import {first}\n{REGISTERED}")
    assert "anomalib-ccl" not in errors


@pytest.mark.parametrize("first", FIRST)
def test_nothing_is_registered_but_all_can_be_imported_if_switched_off(run_fresh, first):
    errors = run_fresh(
        f"import os; os.environ['ANOMALIB_CCL_DISABLE'] = '1'\nimport anomalib_ccl, {first}\n{NOT_REGISTERED}"
    )
    assert "anomalib-ccl" not in errors


def test_one_cause_gives_one_warning_though_it_stops_everything(run_fresh):
    errors = run_fresh("""
        import sys, warnings
        import anomalib_ccl
        sys.modules["anomalib_ccl.registration.registry"] = None
        warnings.simplefilter("always")
        import anomalib.models, anomalib.data
        assert "padim" in anomalib.models.list_models()
        assert not hasattr(anomalib.models, "CCL")
    """)
    assert errors.count("RuntimeWarning: anomalib-ccl could not register itself with anomalib") == 1
    assert "Cause: ModuleNotFoundError: import of anomalib_ccl.registration.registry halted" in errors
    assert "ANOMALIB_CCL_DISABLE=1" in errors


def test_failure_of_one_name_leaves_the_others(run_fresh):
    errors = run_fresh("""
        import sys
        import anomalib_ccl
        sys.modules["anomalib_ccl.lightning_model"] = None
        import anomalib.models, anomalib.data
        assert not hasattr(anomalib.models, "CCL")
        assert anomalib.data.MultiCategory is anomalib_ccl.MultiCategory
    """)
    assert errors.count("anomalib-ccl could not register itself with anomalib") == 1
    assert "lightning_model" in errors


def test_package_alone_loads_neither_torch_nor_anomalib():
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", "import sys, anomalib_ccl; print(*sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    not_stdlib = {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names}
    assert not_stdlib - {"__main__"} == HOOK


@pytest.mark.parametrize("name", [name for name in anomalib_ccl.__all__ if name != "__version__"])
def test_public_names_are_loaded_on_first_use(name):
    assert getattr(anomalib_ccl, name).__name__ == name
    assert name in dir(anomalib_ccl)


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'anomalib_ccl' has no attribute 'Ccl'"):
        anomalib_ccl.Ccl  # noqa: B018


def test_two_waiting_finders_do_not_ask_each_other_for_ever(monkeypatch):
    finders = [import_hook.RegistryFinder(), import_hook.RegistryFinder()]
    monkeypatch.setattr(sys, "meta_path", [*finders, object(), PathFinder])
    spec = finders[0].find_spec("anomalib.models", anomalib.__path__)
    assert spec is not None
    assert spec.origin == str(Path(anomalib.__path__[0], "models", "__init__.py"))


def test_waiting_changes_neither_the_source_nor_the_loader_that_others_see(run_fresh):
    run_fresh("""
        import importlib.util, inspect
        import anomalib_ccl
        spec = importlib.util.find_spec("anomalib.models")
        assert spec.loader.get_source("anomalib.models") == open(spec.origin).read()
        import anomalib.models
        assert type(anomalib.models.__loader__) is type(inspect.__loader__)
        assert anomalib.models.__spec__.loader is anomalib.models.__loader__
    """)


@pytest.mark.parametrize(("value", "off"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_variable_switches_off_unless_empty_or_zero(monkeypatch, value, off):
    if value is None:
        monkeypatch.delenv("ANOMALIB_CCL_DISABLE", raising=False)
    else:
        monkeypatch.setenv("ANOMALIB_CCL_DISABLE", value)
    assert import_hook.disabled() is off


def test_trainers_get_our_callbacks_once_anomalib_is_in_use(run_fresh):
    run_fresh("""
        from anomalib_ccl.registration.registry import callbacks
        import anomalib.data
        assert [type(callback).__name__ for callback in callbacks()] == ["Report"]
    """)


def test_trainers_far_from_anomalib_get_nothing_and_import_nothing(run_fresh):
    run_fresh("""
        import sys
        from anomalib_ccl.registration.registry import callbacks
        assert callbacks() == []
        assert "anomalib" not in sys.modules
    """)


def test_trainers_get_nothing_if_switched_off(run_fresh):
    run_fresh("""
        import os
        os.environ["ANOMALIB_CCL_DISABLE"] = "1"
        import anomalib.data
        from anomalib_ccl.registration.registry import callbacks
        assert callbacks() == []
    """)


def test_reloading_the_package_leaves_no_finder_behind(run_fresh):
    run_fresh("""
        import importlib, sys
        import anomalib.models, anomalib.data, anomalib_ccl
        importlib.reload(anomalib_ccl)
        importlib.reload(anomalib_ccl)
        assert not [finder for finder in sys.meta_path if type(finder).__name__ == "RegistryFinder"]
    """)


@pytest.mark.parametrize("action", ["always", "error"])
def test_broken_report_gives_one_warning_and_no_callback_to_all_trainers(run_fresh, action):
    errors = run_fresh(f"""
        import sys, warnings
        warnings.filterwarnings("{action}", category=RuntimeWarning)
        sys.modules["anomalib_ccl.reports.report"] = None
        import anomalib.data
        from anomalib_ccl.registration.registry import callbacks
        assert callbacks() == callbacks() == []
    """)
    assert errors.count("anomalib-ccl could not register itself with anomalib") == 1
    assert "anomalib_ccl.reports.report" in errors


PARSING = """
import json
from anomalib.cli.cli import AnomalibCLI

parser = AnomalibCLI(["install"], run=False).parser
found = []
for command in ("train", "fit", "validate", "test", "predict", "export"):
    required = ["--export_type", "openvino"] if command == "export" else []
    for name in ("CCL", "anomalib.models.CCL", "anomalib_ccl.CCL"):
        config = {"model": {"class_path": name, "init_args": {"backbone": "resnet18"}}, "data": "MultiCategory"}
        with open("config.yaml", "w") as file:
            json.dump(config, file)
        words = ["--model", name, "--model.backbone", "resnet18", "--data", "MultiCategory"]
        for arguments in (words, ["--config", "config.yaml"]):
            config = parser.parse_args([command, *required, *arguments])[command]
            found.append([config.model.class_path[-4:], config.model.init_args.backbone, config.data.class_path[-14:]])
assert len(found) == 36
assert all(parsed == [".CCL", "resnet18", ".MultiCategory"] for parsed in found), found
"""


def test_all_commands_take_both_names_from_arguments_and_files(run, tmp_path):
    done = run("python", "-c", PARSING, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
