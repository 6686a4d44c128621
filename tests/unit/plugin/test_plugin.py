"""The import hook, the registration, and the lazy public names, each in an interpreter without anomalib."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import anomalib
import pytest

import anomalib_ccl
from anomalib_ccl.plugin import import_hook, switch

PACKAGE = Path(anomalib_ccl.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)

# anomalib takes four seconds to import, most of it for the libraries that it needs. This interpreter loads
# those once, and then runs each snippet from its standard input in a fork in which anomalib is still new.
FORKING_INTERPRETER = """
import contextlib, io, json, os, sys, traceback
import cv2, FrEIA, jsonargparse, kornia, lightning.pytorch.cli, matplotlib.pyplot, omegaconf, openvino, pandas
import rich, sklearn.cluster, timm, torchmetrics.image, torchvision.transforms.v2
assert not any(name.partition(".")[0] in {"anomalib", "anomalib_ccl"} for name in sys.modules)
for line in sys.stdin:
    reader, writer = os.pipe()
    if os.fork() == 0:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                exec(json.loads(line), {})
            except BaseException:
                outcome = traceback.format_exc()
            else:
                outcome = ""
        os.write(writer, json.dumps([outcome, errors.getvalue()]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        print(pipe.read(), flush=True)
    os.wait()
"""


@pytest.fixture(scope="module")
def run_fresh() -> Iterator[Callable[[str], str]]:
    """Run a snippet in an interpreter that has not seen anomalib or us; return what it wrote to stderr."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    environment.pop(switch.DISABLE_VARIABLE, None)
    # -S: an installed copy of the plug-in must not hook itself in before the snippet has its say.
    command = [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}\n{FORKING_INTERPRETER}"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(snippet: str) -> str:
            print(json.dumps(textwrap.dedent(snippet)), file=process.stdin, flush=True)
            failure, errors = json.loads(process.stdout.readline())
            assert not failure, f"{failure}\n{errors}"
            return errors

        yield run
        process.stdin.close()


# What the start of an interpreter loads.
HOOK = {"anomalib_ccl", "anomalib_ccl.plugin", "anomalib_ccl.plugin.import_hook", "anomalib_ccl.plugin.switch"}

REGISTERED = """
import sys, anomalib.data, anomalib.models, anomalib_ccl
assert anomalib.models.CCL is anomalib_ccl.CCL
assert anomalib.data.MultiCategory is anomalib_ccl.MultiCategory
assert anomalib.models.__all__.count("CCL") == 1
assert anomalib.data.__all__.count("MultiCategory") == 1
assert "anomalib_ccl" in anomalib.models.ALLOWED_MODULES
from anomalib.cli.cli import AnomalibCLI
assert [kind.__name__ for kind in AnomalibCLI.__bases__] == ["Commands", "TrainedCommands", "AnomalibCLI"]
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

ANOMALIB = ["anomalib.data", "anomalib.models", "anomalib.engine", "anomalib.cli.cli", "anomalib.pipelines"]


@pytest.mark.parametrize("first", [*ANOMALIB, *MODULES])
def test_both_names_are_registered_whatever_is_imported_first(run_fresh, first):
    errors = run_fresh(f"import anomalib_ccl, {first}\n{REGISTERED}")
    assert "anomalib-ccl" not in errors


@pytest.mark.parametrize("first", ANOMALIB)
def test_both_names_are_registered_at_once_if_anomalib_is_there_already(run_fresh, first):
    errors = run_fresh(f"import {first}\n{REGISTERED}")
    assert "anomalib-ccl" not in errors


# One module of each room: what a module imports is the same as above.
ROOMS = {name.split(".")[1]: name for name in MODULES if "." in name}


@pytest.mark.parametrize("first", [*ANOMALIB, *ROOMS.values()])
def test_nothing_is_registered_but_all_can_be_imported_if_switched_off(run_fresh, first):
    errors = run_fresh(
        f"import os; os.environ['ANOMALIB_CCL_DISABLE'] = '1'\nimport anomalib_ccl, {first}\n{NOT_REGISTERED}"
    )
    assert "anomalib-ccl" not in errors


def test_one_cause_gives_one_warning_though_it_stops_everything(run_fresh):
    errors = run_fresh("""
        import sys, warnings
        import anomalib_ccl
        sys.modules["anomalib_ccl.plugin.registry"] = None
        warnings.simplefilter("always")
        import anomalib.models, anomalib.data
        assert "padim" in anomalib.models.list_models()
        assert not hasattr(anomalib.models, "CCL")
    """)
    assert errors.count("RuntimeWarning: anomalib-ccl could not plug itself into anomalib") == 1
    assert "Cause: ModuleNotFoundError: import of anomalib_ccl.plugin.registry halted" in errors
    assert "ANOMALIB_CCL_DISABLE=1" in errors


def test_failure_of_one_name_leaves_the_other(run_fresh):
    errors = run_fresh("""
        import sys
        import anomalib_ccl
        sys.modules["anomalib_ccl.data.multi_category"] = None
        import anomalib.models, anomalib.data
        assert not hasattr(anomalib.data, "MultiCategory")
        assert "CCL" in anomalib.models.list_models("pascal")
    """)
    assert errors.count("anomalib-ccl could not plug itself into anomalib") == 1
    assert "multi_category" in errors


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
    assert switch.disabled() is off


def test_trainers_get_our_callbacks_once_anomalib_is_in_use(run_fresh):
    run_fresh("""
        from anomalib_ccl.plugin.registry import callbacks
        import anomalib.data
        assert [type(callback).__name__ for callback in callbacks()] == [
            "RunFolder",
            "ReadAsTrained",
            "CategoryReport",
            "Steadiness",
            "ImageReport",
        ]
    """)


def test_trainers_far_from_anomalib_get_nothing_and_import_nothing(run_fresh):
    run_fresh("""
        import sys
        from anomalib_ccl.plugin.registry import callbacks
        assert callbacks() == []
        assert "anomalib" not in sys.modules
    """)


def test_trainers_get_nothing_if_switched_off(run_fresh):
    run_fresh("""
        import os
        os.environ["ANOMALIB_CCL_DISABLE"] = "1"
        import anomalib.data
        from anomalib_ccl.plugin.registry import callbacks
        assert callbacks() == []
    """)


def test_broken_report_gives_one_warning_and_no_callback_to_all_trainers(run_fresh):
    errors = run_fresh("""
        import sys, warnings
        warnings.simplefilter("always")
        sys.modules["anomalib_ccl.metrics.report"] = None
        import anomalib.data
        from anomalib_ccl.plugin.registry import callbacks
        assert callbacks() == callbacks() == []
    """)
    assert errors.count("anomalib-ccl could not plug itself into anomalib") == 1
    assert "anomalib_ccl.metrics.report" in errors
