"""What the report says of CCL beyond other models: recognised classes, the embedding, and steadiness."""

import io
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.engine import Engine
from lightning import Callback, seed_everything
from rich.console import Console
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score, v_measure_score

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.metrics.category import FIGURES
from anomalib_ccl.metrics.table import report_table


class Watch(Callback):
    """Keeps the predictions of each validation and of the test."""

    def __init__(self) -> None:
        self.passes: list[list[tuple[str, float, int, str | None]]] = []

    def on_validation_start(self, *args: Any) -> None:
        self.passes.append([])

    on_test_start = on_validation_start

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        told = batch.explanation or [None] * len(batch.image_path)
        rows = zip(batch.image_path, batch.pred_score.flatten().tolist(), batch.gt_label.tolist(), told, strict=True)
        self.passes[-1] += rows

    on_test_batch_end = on_validation_batch_end


def category(path: str) -> str:
    return Path(path).parts[-4]


def mean_auroc(rows: list[tuple[str, float, int, str | None]]) -> float:
    frame = pd.DataFrame(rows, columns=["path", "score", "label", "told"])
    parts = frame.groupby(frame["path"].map(category))
    return float(np.mean([roc_auc_score(part["label"], part["score"]) for _, part in parts]))


def train_and_test(root: Path, folder: Path, epochs: int = 7, **kwargs: Any) -> SimpleNamespace:
    seed_everything(0)
    watch = Watch()
    model = CCL("tf_efficientnet_lite0", image_size=(64, 64), visualizer=False, **kwargs)
    engine = Engine(
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=[watch],
        accelerator="cpu",
        enable_progress_bar=False,
    )
    data = MultiCategory(root=root, train_batch_size=8, num_workers=0)
    engine.fit(model, datamodule=data)
    in_training = {key: value.item() for key, value in engine.trainer.logged_metrics.items()}
    (logged,) = engine.test(model, datamodule=data)
    report = pd.read_csv(next(folder.rglob("categories.csv")))
    return SimpleNamespace(model=model, data=data, watch=watch, logged=logged, in_training=in_training, report=report)


@pytest.fixture(scope="module")
def run(sample_root: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return train_and_test(sample_root, tmp_path_factory.mktemp("run"))


def test_class_accuracy_is_the_share_of_images_recognised_as_their_category(run: SimpleNamespace) -> None:
    rows = run.watch.passes[-1]
    right, images = (
        Counter(category(p) for p, *_, told in rows if told == category(p)),
        Counter(map(category, [r[0] for r in rows])),
    )
    for row in run.report.iloc[:-1].itertuples():
        assert row.class_accuracy == right[row.category] / images[row.category]
    assert run.logged["mean_class_accuracy"] == pytest.approx(run.report["class_accuracy"].iloc[:-1].mean())
    assert run.logged["mean_class_accuracy"] > 0.2


def test_v_measure_is_that_of_k_means_on_the_embeddings(run: SimpleNamespace) -> None:
    model, embeddings, categories = run.model.eval(), [], []
    with torch.no_grad():
        for batch in run.data.test_dataloader():
            embeddings.append(model.model.score(model.pre_processor.transform(batch.image)).embedding)
            categories += map(category, batch.image_path)
    unit = torch.nn.functional.normalize(torch.cat(embeddings), dim=1).numpy()
    clusters = KMeans(6, n_init=10, random_state=0).fit_predict(unit)
    assert run.logged["embedding_V_measure"] == pytest.approx(v_measure_score(categories, clusters), abs=1e-6)


def test_spread_is_the_range_of_the_last_five_validations(run: SimpleNamespace) -> None:
    means = [mean_auroc(rows) for rows in run.watch.passes[:-1]]
    assert len(means) == 7
    assert run.in_training["val_mean_image_AUROC"] == pytest.approx(means[-1])
    assert run.logged["spread_image_AUROC"] == pytest.approx(max(means[-5:]) - min(means[-5:]), abs=1e-6)
    assert run.logged["spread_pixel_AUROC"] > 0


def test_a_model_of_pseudo_classes_has_no_class_accuracy_but_a_v_measure(sample_root: Path, tmp_path: Path) -> None:
    pseudo = train_and_test(sample_root, tmp_path, epochs=1, class_labels="pseudo")
    assert pseudo.report["class_accuracy"].isna().all()
    assert 0 < pseudo.logged["embedding_V_measure"] <= 1
    assert np.isnan(pseudo.logged["spread_image_AUROC"])


def test_table_with_class_accuracy_fits_an_ordinary_terminal() -> None:
    counts = {"normal_images": 600, "anomalous_images": 1200}
    rows = [{"category": name, **counts, **dict.fromkeys(FIGURES, 1.0)} for name in ("gravel_coarser", "mean")]
    printed = io.StringIO()
    Console(width=80, file=printed).print(report_table(pd.DataFrame(rows)))
    assert ["gravel_coarser", "1800", *["100.0"] * 8] in [line.split() for line in printed.getvalue().splitlines()]
