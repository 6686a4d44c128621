"""What the plug-in adds to the start of a Python interpreter; the aim is less than 5 ms.

Run with ``pytest tests/benchmarks/test_startup.py --benchmark-enable``.
"""

import os
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.benchmark(group="interpreter start")
@pytest.mark.parametrize("hook", [False, True], ids=["without hook", "with hook"])
def test_interpreter_start(benchmark, tmp_path, hook):
    builder = venv.EnvBuilder()
    builder.create(tmp_path)
    python = builder.ensure_directories(tmp_path).env_exe
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site_packages = Path(subprocess.check_output(ask, env=environment, text=True).strip())
    # What an editable installation puts there; the paths come first in the order of names.
    (site_packages / "_anomalib_ccl.pth").write_text(str(ROOT))
    if hook:
        (site_packages / "anomalib_ccl.pth").write_text((ROOT / "anomalib_ccl.pth").read_text())

    loaded = benchmark.pedantic(
        subprocess.check_output,
        args=([python, "-c", "import sys; print('anomalib_ccl' in sys.modules)"],),
        kwargs={"env": environment, "text": True},
        rounds=50,
        warmup_rounds=5,
    )

    assert loaded.strip() == str(hook)
