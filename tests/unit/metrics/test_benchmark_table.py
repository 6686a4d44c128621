"""The table of several benchmarks says what their files hold."""

import runpy
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from typed import ROOT

SCORES = {"bolt": ([0.2, 0.5, 1.2, 0.4], [0.3, 1.5, 2.0]), "nut": ([0.1, 0.3], [0.9, 1.1])}
AUROC = {name: roc_auc_score([0] * len(a) + [1] * len(b), a + b) for name, (a, b) in SCORES.items()}


def write(
    folder: Path, time: str, seed: int, pixel: float = 0.9, names: tuple[str, ...] = ("bolt", "nut"), **options: object
) -> None:
    """Write what a benchmark of one model leaves: the figures of each category, and the score of each image."""
    run = {"model": "CCL", "seed": seed, **{f"model.init_args.{key}": value for key, value in options.items()}}
    figures = [{"image_AUROC": AUROC[name], "pixel_AUROC": pixel, "pixel_AUPRO": 0.5} for name in names]
    rows = [{"category": name, **row, **run} for name, row in zip(names, figures, strict=True)]
    mean = {"category": "mean", "image_AUROC": 0.0, "pixel_AUROC": 0.0, "pixel_AUPRO": 0.0, **run}
    pd.DataFrame([*rows, mean]).to_csv(folder / f"{time}-categories.csv", index=False)
    images = [
        {"category": name, "defective": defective, "score": score, **run}
        for name in names
        for defective, scores in zip((False, True), SCORES[name], strict=True)
        for score in scores
    ]
    pd.DataFrame(images).to_csv(folder / f"{time}-images.csv", index=False)


def table(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *more: str
) -> pd.DataFrame:
    """What the script prints, row by row."""
    monkeypatch.setattr("sys.argv", ["benchmark_table.py", str(folder), *more])
    runpy.run_path(str(ROOT / "examples/benchmark_table.py"), run_name="__main__")
    printed = capsys.readouterr()
    head, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in printed.out.splitlines())
    found = pd.DataFrame(lines, columns=head).set_index("")
    found.attrs["said"] = printed.err
    return found


def test_a_row_is_the_mean_and_deviation_of_its_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, pixel in enumerate((0.8, 0.9, 1.0)):
        write(tmp_path, f"2026-1-{seed}", seed, pixel, recipe="paper")
    write(tmp_path, "2026-2", 0, recipe="recommended", feature_cache="somewhere")
    found = table(tmp_path, capsys, monkeypatch)
    assert list(found.index) == ["CCL: recipe paper", "CCL: recipe recommended"]
    paper = found.loc["CCL: recipe paper"]
    mean = 100 * (AUROC["bolt"] + AUROC["nut"]) / 2
    assert paper["seeds"] == "3"
    assert paper["image AUROC"] == f"{mean:.1f} ± 0.0"
    assert paper["pixel AUROC"] == "90.0 ± 10.0"
    # Of four and of no normal images one and none; of three and of two defective ones two and one.
    assert paper["false alarms"] == "12.5"
    assert paper["found"] == f"{100 * (2 / 3 + 1 / 2) / 2:.1f}"
    low, high = map(float, paper["95 % interval"].split(" to "))
    assert low < mean < high
    assert found.loc["CCL: recipe recommended", "pixel AUROC"] == "90.0"


def test_image_figures_of_categories_that_stand_apart_are_not_in_the_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "2026-1", 0)
    found = table(tmp_path, capsys, monkeypatch, "--apart", "bolt", "--csv", str(tmp_path / "table.csv"))
    assert found["image AUROC"].tolist() == ["100.0"]
    assert found["false alarms"].tolist() == ["0.0"]
    assert found["image AUROC of bolt"].tolist() == [f"{100 * AUROC['bolt']:.1f}"]
    assert found["pixel AUROC"].tolist() == ["90.0"]
    each = pd.read_csv(tmp_path / "table.csv", header=[0, 1], index_col=[0, 1]).droplevel(0)
    assert each.index.tolist() == ["bolt", "nut"]
    assert each["image_AUROC", "mean"].tolist() == pytest.approx([100 * AUROC["bolt"], 100], abs=0.01)
    low, high = map(float, each.loc["bolt", ("image_AUROC", "95 % interval")].split(" to "))
    assert low < 100 * AUROC["bolt"] < high
    assert each.loc["nut", ("image_AUROC", "95 % interval")] == "100.0 to 100.0"


def test_of_a_run_that_was_repeated_the_last_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, time, pixel in (("b", "2026-1", 0.2), ("a", "2026-2", 0.7)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, time, 0, pixel)
    found = table(tmp_path, capsys, monkeypatch)
    assert found[["seeds", "pixel AUROC"]].to_numpy().tolist() == [["1", "70.0"]]


def test_a_run_that_lacks_categories_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "2026-1", 0, pixel=0.8)
    write(tmp_path, "2026-2", 1, pixel=0.1, names=("bolt",))
    found = table(tmp_path, capsys, monkeypatch)
    assert found[["seeds", "pixel AUROC"]].to_numpy().tolist() == [["1", "80.0"]]
    assert found.attrs["said"].startswith("left out: seed 1 of CCL")


def test_a_folder_without_benchmarks_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"no \*-categories.csv in .*anomalib benchmark"):
        table(tmp_path, capsys, monkeypatch)
