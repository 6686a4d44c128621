"""The insight into a model that anomalib's engine has trained."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anomalib.engine import Engine
from lightning import seed_everything
from PIL import Image

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.errors import InputError
from anomalib_ccl.reports.insight import collect_scores, insight

CATEGORIES = ["brick", "grass", "retina"]
UNSEEN = "tissue"


def data(root: Path, categories: list[str]) -> MultiCategory:
    return MultiCategory(root=root, categories=categories, train_batch_size=8, num_workers=0)


@pytest.fixture(scope="module")
def run(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A model, and the files of anomalib's own test of it."""
    folder = tmp_path_factory.mktemp("run")
    seed_everything(0)
    model = CCL("test_efficientnet", pre_trained=False, image_size=(64, 64), visualizer=False)
    engine = Engine(max_epochs=6, default_root_dir=folder, accelerator="cpu", enable_progress_bar=False)
    engine.fit(model, datamodule=data(sample_root, CATEGORIES))
    engine.test(model, datamodule=data(sample_root, CATEGORIES))
    files = {name: pd.read_csv(next(folder.rglob(f"{name}.csv"))) for name in ("categories", "predictions")}
    return SimpleNamespace(model=model, **files)


def test_insight_prints_the_table_and_writes_it_and_the_pictures(
    run: SimpleNamespace, sample_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    insight(run.model, data(sample_root, [*CATEGORIES, UNSEEN]), tmp_path / "here")
    table = pd.read_csv(tmp_path / "here/calibration.csv", index_col="category")
    assert list(table.index) == [*CATEGORIES, UNSEEN, "mean", "pooled"]
    assert (table.loc[CATEGORIES, "normal_images"] == 2).all()
    assert (table.loc[CATEGORIES, "anomalous_images"] == 4).all()
    assert table.loc[UNSEEN, "class_accuracy"] == table.loc[UNSEEN, "unknown"]

    # anomalib's own test of the model is another way to the same figures.
    tested = run.categories.set_index("category").loc[CATEGORIES]
    for ours, theirs in (
        ("image_AUROC_calibrated", "image_AUROC"),
        ("class_accuracy", "class_accuracy"),
        ("false_alarms_1", "false_alarms"),
    ):
        np.testing.assert_allclose(table.loc[CATEGORIES, ours], tested[theirs], err_msg=ours)
    np.testing.assert_allclose(1 - table.loc[CATEGORIES, "detected_1"], tested["missed"])

    output = capsys.readouterr().out
    assert all(any(line.split()[:1] == [name] for line in output.splitlines()) for name in table.index)
    for name in ("embedding", "scores", "classes"):
        with Image.open(tmp_path / f"here/{name}.png") as picture:
            assert min(picture.size) > 300
            assert np.ptp(np.asarray(picture.convert("L"))) > 200


def test_scores_are_those_of_the_engine(run: SimpleNamespace, sample_root: Path) -> None:
    scores = collect_scores(run.model, data(sample_root, CATEGORIES))
    shown = (scores.images["calibrated"] / 2).clip(upper=1)
    np.testing.assert_allclose(shown, run.predictions["score"], atol=1e-4)
    assert scores.images["recognised"].tolist() == run.predictions["product"].tolist()
    np.testing.assert_allclose(scores.images["calibrated_1"], scores.images["calibrated"], rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(scores.embeddings, axis=1), 1, rtol=1e-5)
    assert scores.classes == CATEGORIES
    assert scores.prototypes.shape[0] == 3


def test_models_and_data_that_do_not_fit_are_refused(run: SimpleNamespace, sample_root: Path) -> None:
    with pytest.raises(InputError, match="trained on brick, grass, retina, but on none of the datamodule's categories"):
        collect_scores(run.model, data(sample_root, [UNSEEN]))
    untrained = CCL("test_efficientnet", pre_trained=False, image_size=(64, 64), visualizer=False)
    with pytest.raises(InputError, match="this model is not calibrated"):
        collect_scores(untrained, data(sample_root, CATEGORIES))
