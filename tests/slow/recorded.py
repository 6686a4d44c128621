"""anomalib's training commands, typed as a user types them, with :class:`recorder.Recorder` looking on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(folder: Path, command: str, root: Path, *arguments: str, seed: int = 0, kill_at: int = 0) -> tuple[int, str]:
    """Run ``anomalib fit`` or ``train`` in a new folder and return its exit status and what it printed."""
    recorder = {"class_path": "recorder.Recorder", "init_args": {"folder": str(folder), "kill_at": kill_at}}
    line = [
        str(Path(sys.executable).with_name("anomalib")),
        command,
        "--model=CCL",
        "--model.backbone=mobilenetv3_small_100",
        "--model.pre_trained=false",
        "--model.image_size=[64,64]",
        "--data=MultiCategory",
        f"--data.root={root}",
        "--trainer.accelerator=cpu",
        f"--trainer.callbacks={json.dumps([recorder])}",
        *arguments,
    ]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    # The same sums on one thread each time.
    environment = {**os.environ, "PYTHONPATH": path, "SEED": str(seed), "OMP_NUM_THREADS": "1"}
    folder.mkdir()
    result = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


def steps(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """What a process recorded at each step."""
    return json.loads((folder / f"{rank}.json").read_text())
