"""``configs/benchmark/paper.yaml`` on miniatures of its data: every network on every data set."""

from collections.abc import Callable
from pathlib import Path

import miniatures
import pandas as pd
import yaml
from typed import ROOT

CONFIGS = ROOT / "configs"
# Small ones for the networks of the benchmark, in its order.
BACKBONES = {
    "reverse_distillation": "test_efficientnet",
    "vit": "test_vit",
    "dinomaly": "vit_tiny_patch16_224",
}


def test_benchmark_of_the_paper_reports_every_network_on_every_data_set(anomalib: Callable, tmp_path: Path) -> None:
    two = ["toothbrush", "zipper"]
    miniatures.mvtec(tmp_path / "datasets/MVTecAD", two)
    miniatures.visa(tmp_path / "datasets/visa", ["candle"])
    miniatures.btad(tmp_path / "datasets/BTech", ["01", "02", "03"])
    miniatures.real_iad(tmp_path / "datasets/Real-IAD", two)
    miniatures.manta(tmp_path / "datasets/MANTA", ["maize", "nut"])
    config = yaml.safe_load((CONFIGS / "benchmark/paper.yaml").read_text())
    config["accelerator"] = "cpu"
    grid = config["benchmark"]["model"]["grid"]
    assert [model["init_args"]["reconstruction"] for model in grid] == [*BACKBONES]
    models = []
    for model in grid:
        backbone = BACKBONES[model["init_args"]["reconstruction"]]
        arguments = {"backbone": backbone, "image_size": [64, 64], "pre_trained": False}
        models.append({**model, "init_args": {**model["init_args"], **arguments}})
    config["benchmark"]["model"]["grid"] = models
    config["benchmark"]["data"]["init_args"] |= {"max_epochs": 1, "num_workers": 0}
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(config))
    done = anomalib("benchmark", "--config=paper.yaml", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = (tmp_path / "runs/benchmark").glob("*/results.csv")
    frame = pd.read_csv(results)
    assert len(frame) == 6 * len(models)
    assert frame["mean_image_AUROC"].notna().all()
