"""Labels may be missing in training, at test time, or both: one model, one threshold and class names all the same.

Labels at test time are a report for each category; without them, images lie in a flat folder and are predicted.
``pytest -rP`` shows the figures that stand in the README.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anomalib.data import PredictDataset
from anomalib.engine import Engine
from sklearn.metrics import roc_auc_score, v_measure_score

from anomalib_ccl import CCL
from anomalib_ccl.data import make_sample_dataset

ANOMALIB = Path(sys.executable).with_name("anomalib")
CATEGORIES = ["brick", "grass", "gravel_coarse", "gravel_fine", "retina", "tissue"]
# With a rate of false alarms, normal images are enough to set the threshold.
MODEL = [
    "--model=CCL",
    "--model.backbone=tf_efficientnet_lite0",
    "--model.image_size=[64,64]",
    "--model.false_alarm_rate=0.1",
]


def run(folder: Path, command: str, *arguments: str) -> str:
    """Run one of anomalib's commands in a folder and return what it printed on both streams."""
    line = [str(ANOMALIB), command, *MODEL, *arguments, "--trainer.accelerator=cpu"]
    result = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "sample"
    return make_sample_dataset(root, size=64, train=16, test_good=8, per_defect=2)


def flat(root: Path, pattern: str, folder: Path) -> Path:
    """Copy images of all products into one folder; their truth stands in their new names, for the test alone."""
    folder.mkdir()
    for path in root.glob(pattern):
        shutil.copy(path, folder / "-".join(path.relative_to(root).parts))
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["trained with labels", "trained without"])
def labels(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(labels: bool, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    if labels:
        data = ["--data=MultiCategory", f"--data.root={root}"]
    else:
        mixed = flat(root, "*/train/good/*.png", folder / "mixed")
        data = ["--data=Folder", "--data.name=mixed", f"--data.normal_dir={mixed}", "--data.train_batch_size=16"]
    trainer = ["--trainer.max_epochs=8", "--trainer.check_val_every_n_epoch=8", "--seed_everything=1"]
    run(folder, "fit", *data, "--data.num_workers=0", *trainer)
    (path,) = folder.rglob("model.ckpt")
    return path


@pytest.fixture(scope="module")
def predicted(checkpoint: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What the engine predicts for a flat folder of all images, beside the truth."""
    folder = flat(root, "*/t*/*/*.png", tmp_path_factory.mktemp("flat") / "images")
    model = CCL.load_from_checkpoint(checkpoint, visualizer=False)
    engine = Engine(default_root_dir=folder.parent, accelerator="cpu", enable_progress_bar=False)
    batches = engine.predict(model, dataset=PredictDataset(folder))
    truth = [Path(path).name.split("-") for batch in batches for path in batch.image_path]
    return pd.DataFrame(
        {
            "category": [parts[0] for parts in truth],
            "kind": [parts[1] if parts[2] == "good" else "defective" for parts in truth],
            "score": [score.item() for batch in batches for score in batch.pred_score],
            "alarm": [label.item() for batch in batches for label in batch.pred_label],
            "product": [name for batch in batches for name in batch.explanation],
        }
    )


def auroc(predicted: pd.DataFrame) -> float:
    tested = predicted[predicted["kind"] != "train"]
    return float(roc_auc_score(tested["kind"] == "defective", tested["score"]))


def test_without_labels_at_test_time_scores_rank_defects_of_all_products_above_chance(predicted: pd.DataFrame) -> None:
    assert np.isfinite(predicted["score"]).all()
    assert auroc(predicted) > 0.6


def test_without_labels_at_test_time_predictions_tell_products_apart(labels: bool, predicted: pd.DataFrame) -> None:
    right = (predicted["product"] == predicted["category"]).mean()
    v_measure = v_measure_score(predicted["category"], predicted["product"])
    print(f"named rightly {right:.3f}, V-measure of the names {v_measure:.3f}")
    if labels:
        assert set(predicted["product"]) <= {*CATEGORIES, "unknown"}
        assert right > 0.6
    else:
        assert predicted["product"].str.fullmatch(r"pseudo_\d+|unknown").all()
        assert v_measure > 0.5


def test_one_threshold_serves_all_products(predicted: pd.DataFrame) -> None:
    assert predicted["alarm"].equals(predicted["score"] > 0.5)
    alarms = predicted.groupby(["kind", "category"])["alarm"].mean()
    print(f"AUROC of all images {auroc(predicted):.3f}, alarms:", alarms.groupby("kind").mean().round(3).to_dict())
    assert alarms["train"].max() < 0.4
    assert alarms["defective"].mean() > 2 * alarms["train"].mean()


def test_with_labels_at_test_time_the_test_reports_each_category(
    labels: bool, checkpoint: Path, root: Path, predicted: pd.DataFrame, tmp_path: Path
) -> None:
    data = ["--data=MultiCategory", f"--data.root={root}", "--data.num_workers=0", "--model.visualizer=false"]
    output = run(tmp_path, "test", *data, f"--ckpt_path={checkpoint}")
    (path,) = tmp_path.rglob("categories.csv")
    frame = pd.read_csv(path, index_col="category")
    print(frame.loc["mean", ["image_AUROC", "pixel_AUROC", "class_accuracy"]].round(3).to_dict())
    assert list(frame.index) == [*CATEGORIES, "mean"]
    # The names of pseudo-classes are not those of the categories.
    told = frame.columns if labels else frame.columns.drop("class_accuracy")
    assert np.isfinite(frame[told].to_numpy()).all()
    # The labels make the report, and change nothing that the model says.
    (of_all,) = re.findall(r"\simage_AUROC\s+[│|]?\s*([\d.]+)", output)
    assert float(of_all) == pytest.approx(auroc(predicted), abs=0.006)


def test_predict_command_takes_a_flat_folder(checkpoint: Path, root: Path, tmp_path: Path) -> None:
    images = flat(root, "*/test/good/000.png", tmp_path / "images")
    run(tmp_path, "predict", f"--data={images}", f"--ckpt_path={checkpoint}")
    heatmaps = {path.name for path in (tmp_path / "results").rglob("*.png")}
    assert heatmaps == {path.name for path in images.iterdir()}
