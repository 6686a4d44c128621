"""Train one model for six products, look at what it finds, and export it: four minutes on two quiet cores.

    python examples/demo.py

Runs commands of the README, two at a time, and shows what matters of each; all that they print is in OUTPUT/*.log.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path
from threading import Thread
from typing import ClassVar

BIN = Path(sys.executable).parent
# The weights come from an installed package, so no hub need be asked. One thread adds up in the same order whatever the
# number of cores.
QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONIOENCODING": "utf-8"}


class Command:
    """A command that runs: all that it prints goes to a file, and lines that match are shown."""

    started: ClassVar[list["Command"]] = []

    def __init__(self, log: Path, *words: str | Path, shown: str = "$.") -> None:
        self.log, self.words, self.shown, self.start = log, [str(word) for word in words], shown, time.monotonic()
        print("    $", shlex.join(self.words), flush=True)
        program, *rest = self.words
        environment = {**os.environ, **QUIET, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8"}
        self.process = subprocess.Popen([BIN / program, *rest], env=environment, errors="replace", **output)
        self.reader = Thread(target=self._read, daemon=True)
        self.reader.start()
        self.started.append(self)

    def _read(self) -> None:
        with self.log.open("w", encoding="utf-8") as file:
            for line in self.process.stdout:
                file.write(line)
                if re.match(self.shown, line):
                    print("   ", line.rstrip(), flush=True)

    def wait(self) -> float:
        """Wait for its end, which ends the demo where it failed; give the seconds that it took."""
        self.reader.join()
        if self.process.wait() != 0:
            for other in self.started:
                other.process.terminate()
            print(*self.log.read_text(encoding="utf-8").splitlines()[-20:], sep="\n")
            sys.exit(f"{shlex.join(self.words)} failed; all that it printed is in {self.log}")
        return time.monotonic() - self.start


def train(root: Path, output: Path, recipe: str, arguments: argparse.Namespace, shown: str) -> Command:
    """Start a training."""
    words = ["python", "examples/seeded.py", "0", "train", "--config", "configs/model/ccl_lite0.yaml"]
    words += ["--data", "configs/data/sample.yaml", "--data.root", str(root), "--model.recipe", recipe]
    words += [
        "--data.val_split_mode",
        "none",
        "--data.num_workers",
        "1",
        "--model.image_size",
        f"[{arguments.size},{arguments.size}]",
    ]
    words += ["--trainer.max_epochs", str(arguments.epochs), "--default_root_dir", str(output / recipe)]
    return Command(output / f"{recipe}.log", *words, shown=shown)


def show(output: Path, run: Path, model: Path) -> None:
    """Print the table of the test and three predictions of the exported model, and join four pictures of the test."""
    import pandas as pd  # noqa: PLC0415  # heavy, and not needed before
    from PIL import Image  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    warnings.simplefilter("ignore")  # those of libraries, when they are imported
    from anomalib_ccl import CCLInferencer  # noqa: PLC0415
    from anomalib_ccl.reports.table import report_table  # noqa: PLC0415

    Console(width=None if sys.stdout.isatty() else 100).print(report_table(pd.read_csv(run / "categories.csv")))
    rows = pd.read_csv(run / "predictions.csv").sort_values("score", ascending=False)
    found = rows[rows["defective"] & (rows["verdict"] == "anomalous")].drop_duplicates("category").head(2)
    wrong = rows[rows["defective"] != (rows["verdict"] == "anomalous")].head(1)
    good = rows[~rows["defective"] & (rows["verdict"] == "normal")].tail(1)
    chosen = pd.concat([found, good, wrong])
    inferencer = CCLInferencer(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for path in chosen["path"].head(3):
        prediction = inferencer.predict(path)
        verdict = "anomalous" if prediction.pred_label.item() else "normal"
        print(
            f"{os.path.relpath(path)}: {prediction.explanation[0]}, score {prediction.pred_score.item():.3f}, {verdict}"
        )
    # What `anomalib predict` draws too.
    places = [
        run / "images" / row.category / Path(row.path).parent.name / Path(row.path).name for row in chosen.itertuples()
    ]
    pictures = [Image.open(place).convert("RGB") for place in places]
    width, height = max(p.width for p in pictures) + 8, max(p.height for p in pictures) + 8
    joined = Image.new("RGB", (2 * width, (len(pictures) + 1) // 2 * height), "white")
    for number, picture in enumerate(pictures):
        joined.paste(picture, (number % 2 * width, number // 2 * height))
    joined.save(output / "demo.png")


def main(arguments: argparse.Namespace) -> None:
    """Train, look, export, show."""
    root, output = arguments.root, arguments.output
    output.mkdir(parents=True, exist_ok=True)
    if not root.exists():
        print("1. Sample data: photographs of scikit-image, cut into six products with painted defects", flush=True)
        Command(output / "sample.log", "anomalib-ccl", "sample", root).wait()
    print("2. Two models of all six products, one on each core; the first lines take half a minute of imports")
    quick = train(root, output, "memory", arguments, shown="$.")
    best = train(root, output, "recommended", arguments, shown="epoch |\\d+ products|\\d+ epochs? at")
    seconds = quick.wait()
    print(f"    The memory recipe, which needs no training, is ready and tested after {seconds:.0f} s.", flush=True)
    best.wait()
    run = (output / "recommended/CCL/MultiCategory/latest").resolve().relative_to(Path.cwd())
    checkpoint = run / "weights/lightning/model.ckpt"
    print("3. Pictures of what the model knows, and an export to OpenVINO, side by side: half a minute", flush=True)
    words = ["anomalib-ccl", "insight", "--ckpt_path", checkpoint, "--data", "configs/data/sample.yaml"]
    insight = Command(output / "insight.log", *words, "--data.root", root, "--output", run / "insight")
    words = ["anomalib", "export", "--model", "CCL", "--ckpt_path", checkpoint, "--export_type", "openvino"]
    Command(output / "export.log", *words, "--export_root", run).wait()
    insight.wait()
    print("4. The test of the recommended recipe, and three predictions of the exported model", flush=True)
    show(output, run, run / "weights/openvino/model.xml")
    print(f"A picture of each test image: {run / 'images'}")
    print(f"Four of them, a mistake among them: {output / 'demo.png'}")
    print(f"Embedding, scores and recognised products: {run / 'insight'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/sample"), help="the sample data; made if missing")
    parser.add_argument("--output", type=Path, default=Path("results/demo"), help="folder of all results")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="height and width that the network sees, in pixels")
    main(parser.parse_args())
