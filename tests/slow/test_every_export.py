"""Exports of each network with a memory, and of tiles, give the engine's answer."""

from pathlib import Path
from typing import Any

import pytest
from trainings import EXAMPLES, NETWORKS, assert_exports_give_the_engines_answer, ccl, data, engine

TILES: dict[str, Any] = {"image_size": (32, 64), "tiles": [2, 2], "recipe": "recommended"}


@pytest.mark.parametrize("network", ["reverse_distillation", "vit", "dinomaly", "own", "tiles", "memory"])
def test_an_export_gives_the_engines_answer(
    network: str, sample_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    arguments = (NETWORKS | {"tiles": TILES, "memory": {"recipe": "memory"}})[network]
    model = ccl(**{**arguments, "memory": 0 if network == "own" else 20})
    engine(tmp_path, max_epochs=1, limit_val_batches=0).fit(model, datamodule=data(sample_root))
    assert_exports_give_the_engines_answer(model, tmp_path)
