"""A guest changes nothing: with the plug-in on and off, other libraries differ by the registered names alone."""

import json
from pathlib import Path

HERE = Path(__file__).parent
REGISTERED = {
    "anomalib.data.MANTA",
    "anomalib.data.MultiCategory",
    "anomalib.data.__all__",
    "anomalib.models.ALLOWED_MODULES",
    "anomalib.models.CCL",
    "anomalib.models.__all__",
}
SNAPSHOT = f"""
import json, sys
sys.path.append({str(HERE)!r})
import anomalib_ccl, anomalib.cli.cli, anomalib.engine, anomalib.models, anomalib.data, lightning, torch.onnx
from lightning.pytorch import Trainer
Trainer(logger=False, enable_checkpointing=False, barebones=True)
import state
with open(sys.argv[1], "w") as file:
    json.dump({{name: state.text(value) for name, value in state.attributes().items()}}, file)
"""


def test_only_the_registered_names_differ(run, tmp_path):
    found = []
    for disable in ("1", "0"):
        path = tmp_path / f"{disable}.json"
        done = run("python", "-c", SNAPSHOT, path.name, cwd=tmp_path, env={"ANOMALIB_CCL_DISABLE": disable}, fresh=True)
        assert done.returncode == 0, done.stderr
        assert "anomalib-ccl" not in done.stderr
        found.append(json.loads(path.read_text().replace(path.name, "FILE")))
    off, on = found
    assert {"logging.Logger.callHandlers", "sys.excepthook", "warnings.showwarning", "torch.onnx.export"} <= off.keys()
    modules = {name.rpartition(".")[0] for name in off}
    # What a module holds that only one of them has imported is no difference between them.
    changed = {name for name in {*off, *on} if off.get(name) != on.get(name) and name.rpartition(".")[0] in modules}
    assert changed == REGISTERED


CHANGES = {
    "a method": "logging.Logger.callHandlers = lambda *args: None",
    "a wrapped function": "import functools; f = torch.onnx.export; torch.onnx.export = functools.wraps(f)(lambda: 0)",
    "a subclass in place of a class": "anomalib.cli.cli.AnomalibCLI = type('AnomalibCLI', (AnomalibCLI,), {})",
    "a hook": "sys.excepthook = print",
    "a handler": "logging.getLogger().addHandler(logging.NullHandler())",
    "a filter": "warnings.simplefilter('ignore', ImportWarning)",
}


def test_any_change_would_be_seen(run, tmp_path):
    code = f"""
import logging, sys, warnings
sys.path.append({str(HERE)!r})
import anomalib.cli.cli, torch.onnx, state
from anomalib.cli.cli import AnomalibCLI
def texts():
    return {{name: state.text(value) for name, value in state.attributes().items()}}
before = texts()
for kind, change in {CHANGES!r}.items():
    exec(change)
    after = texts()
    assert after != before, kind
    before = after
"""
    done = run("python", "-c", code, cwd=tmp_path, fresh=True)
    assert done.returncode == 0, done.stderr
