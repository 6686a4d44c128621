"""Checkpoints of the authors' released code: their names and ours, and the way there and back."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalib_ccl import CCL
from anomalib_ccl.authors import BACKBONE, convert, from_authors, read_authors, to_authors
from anomalib_ccl.errors import InputError
from anomalib_ccl.training.options import Research


def small(projection: str) -> CCL:
    """An untrained model, which is small enough."""
    torch.manual_seed(0)
    model = CCL("resnet18", pre_trained=False, calibrate=False, research=Research(projection=projection))
    return model.eval()


@pytest.fixture(scope="module", params=["standard", "light"])
def projection(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def state(projection: str) -> dict[str, Tensor]:
    """The state dictionary of a WideResNet-50-2 in which each tensor is one number, of any shape at no cost."""
    with torch.device("meta"):
        state = CCL(BACKBONE, pre_trained=False, research=Research(projection=projection)).state_dict()
    return {name: torch.tensor(float(i)).expand(tensor.shape) for i, (name, tensor) in enumerate(state.items())}


def test_names_and_number_of_tensors_are_the_authors(state: dict[str, Tensor], projection: str) -> None:
    theirs = to_authors(state)
    parts = Counter(name.split(".")[0] for name in theirs)
    of_projections = {"standard": 24, "light": 48}[projection]
    assert parts == {"net_t": 258, "mff_oce": 78, "net_s": 252, "proj_layer": of_projections}
    assert len(theirs) == {"standard": 612, "light": 636}[projection]
    if projection == "standard":
        assert sum(tensor.numel() for tensor in theirs.values()) / 1e6 == pytest.approx(96.2, abs=0.1)
    layers = {"standard": "0|3|6|9", "light": "0|1|4|5|8|9|12|13"}[projection]
    block = r"(conv|bn)[123]\.\w+|(downsample|upsample)\.[01]\.\w+"
    patterns = [
        rf"net_t\.(conv1\.weight|bn1\.\w+|layer(1\.[0-2]|2\.[0-3]|3\.[0-5])\.({block}))",
        rf"mff_oce\.((conv|bn)[123]\.\w+|bn_layer\.[0-2]\.({block}))",
        rf"net_s\.layer(1\.[0-2]|2\.[0-3]|3\.[0-5])\.({block})",
        rf"proj_layer\.proj_[abc]\.proj\.({layers})\.(weight|bias)",
    ]
    assert [name for name in theirs if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []
    assert theirs["proj_layer.proj_a.proj.0.bias"].shape[0] < theirs["proj_layer.proj_c.proj.0.bias"].shape[0]


def test_every_tensor_goes_there_and_back(state: dict[str, Tensor]) -> None:
    theirs = to_authors(state)
    blank = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}
    back = from_authors(theirs, blank, "weights.pth")
    assert back.keys() == state.keys()
    changed = {name for name in state if back[name] is not blank[name]}
    assert len(changed) == len(theirs)
    assert all(torch.equal(back[name], state[name]) for name in changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("net_s.layer1.0.conv1.weight"), r"net_s\.layer1\.0\.conv1\.weight, 1 tensors in all"),
        (lambda x: x.update(extra=torch.zeros(1)), r"extra, 1 tensors in all"),
        (lambda x: [x.pop(name) for name in list(x) if "net_t.layer3" in name], r"net_t.*, 114 tensors in all"),
        (lambda x: x.update({"net_t.conv1.weight": torch.zeros(64, 64, 3, 3)}), "net_t.conv1.weight, 1 tensors in all"),
    ],
)
def test_what_does_not_fit_is_named_in_one_sentence(
    change: Callable[[dict[str, Tensor]], object], message: str, state: dict[str, Tensor]
) -> None:
    theirs = to_authors(state)
    change(theirs)
    with pytest.raises(InputError, match=f"weights.pth is not in .*: {message}"):
        from_authors(theirs, state, "weights.pth")


@pytest.mark.parametrize("form", ["whole", "net", "module"])
def test_state_dictionary_is_found_where_the_authors_have_it(form: str, tmp_path: Path) -> None:
    weights = {"net_t.conv1.weight": torch.rand(2), "net_s.layer1.0.bn1.bias": torch.rand(3)}
    held = {"module." + name: tensor for name, tensor in weights.items()} if form == "module" else weights
    figures = {"mAUROC_sp_max_Avg": [np.float64(98.1), np.float32(1)]}
    optimizer = torch.optim.Adam(torch.nn.Linear(2, 2).parameters()).state_dict()
    beside = {"epoch": 3, "metric_recorder": figures, "optimizer": {"proj_opt": optimizer}, "scaler": None}
    torch.save(held if form == "whole" else {"net": held, **beside}, tmp_path / "net.pth")
    read = read_authors(tmp_path / "net.pth")
    assert read is not None
    assert {name: tensor.tolist() for name, tensor in read.items()} == {k: v.tolist() for k, v in weights.items()}


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (b"no checkpoint", "is no checkpoint"),
        ({"net": {"a": Path()}}, "if you trust it"),
        ({"epoch": 3}, "holds no state dictionary"),
    ],
)
def test_other_files_are_refused(held: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    if isinstance(held, bytes):
        file.write_bytes(held)
    else:
        torch.save(held, file)
    with pytest.raises(InputError, match=message):
        convert(file, tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()


def test_converted_models_score_as_before(projection: str, tmp_path: Path) -> None:
    model, images = small(projection), torch.rand(2, 3, 64, 64)
    theirs, ours, back = (tmp_path / name for name in ("net.pth", "ours.ckpt", "back.pth"))
    torch.save({"net": to_authors(model.state_dict()), "epoch": 1}, theirs)
    assert "not calibrated" in convert(theirs, ours, backbone="resnet18")
    loaded = CCL.load_from_checkpoint(ours).eval()
    assert torch.equal(loaded.model(images).anomaly_map, model.model(images).anomaly_map)
    convert(ours, back, backbone="resnet18")
    there, here = (read_authors(path) or {} for path in (theirs, back))
    assert list(there) == list(here)
    assert all(torch.equal(there[name], here[name]) for name in there)
    with pytest.raises(InputError, match="exists already"):
        convert(ours, back, backbone="resnet18")
    with pytest.raises(InputError, match=f"of backbone='resnet18', projection='{projection}' .*; theirs are of 'wide"):
        convert(ours, tmp_path / "wide.pth")
