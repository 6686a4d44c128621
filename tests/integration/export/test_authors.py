"""Checkpoints of the authors' released code: their names and ours, and the way there and back."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from anomalib_ccl import CCL, authors
from anomalib_ccl.export import authors_layout
from anomalib_ccl.export.authors_layout import from_authors, projection_of, read_authors, to_authors


def ours(projection: str = "standard") -> dict[str, Tensor]:
    """The state dictionary of a WideResNet-50-2 in which each tensor is one number, of any shape at no cost."""
    with torch.device("meta"):
        state = CCL("wide_resnet50_2", pre_trained=False, projection=projection, visualizer=False).state_dict()
    return {name: torch.tensor(float(i)).expand(tensor.shape) for i, (name, tensor) in enumerate(state.items())}


@pytest.fixture(scope="module", params=["standard", "light"])
def projection(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def state(projection: str) -> dict[str, Tensor]:
    return ours(projection)


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
    assert projection_of(theirs) == projection


@pytest.mark.parametrize("unused", [True, False])
def test_every_tensor_goes_there_and_back(state: dict[str, Tensor], unused: bool) -> None:
    """With and without the two layers of anomalib's bottleneck that nothing depends on."""
    layers = ("model.network.bottleneck.conv4.", "model.network.bottleneck.bn4.")
    model = {name: tensor for name, tensor in state.items() if not name.startswith(layers)}
    if unused:
        model["model.network.bottleneck.conv4.weight"] = torch.zeros(1)
        model["model.network.bottleneck.bn4.weight"] = torch.zeros(1)
    theirs = to_authors(model)
    blank = {
        name: tensor if name not in state else torch.zeros(()).expand(tensor.shape) for name, tensor in model.items()
    }
    back = from_authors(theirs, blank, "weights.pth")
    assert back.keys() == model.keys()
    changed = {name for name in model if back[name] is not blank[name]}
    assert len(changed) == len(theirs)
    assert all(torch.equal(back[name], model[name]) for name in changed)
    assert to_authors(back).keys() == theirs.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("net_s.layer1.0.conv1.weight"), r"it lacks net_s\.layer1\.0\.conv1\.weight$"),
        (lambda x: x.update(extra=torch.zeros(1)), r"there is no place for extra$"),
        (lambda x: [x.pop(name) for name in list(x) if "net_t.layer3" in name], r"it lacks net_t.* and 111 more$"),
        (
            lambda x: x.update({"net_t.layer1.0.conv2.weight": torch.zeros(64, 64, 3, 3)}),
            r"another backbone than wide_resnet50_2: net_t.layer1.0.conv2.weight has the shape \(64, 64, 3, 3\) inst",
        ),
    ],
)
def test_what_does_not_fit_is_named_in_one_sentence(change, message: str, state: dict[str, Tensor]) -> None:
    theirs = to_authors(state)
    change(theirs)
    with pytest.raises(ValueError, match=f"weights.pth is .*{message}") as caught:
        from_authors(theirs, state, "weights.pth")
    assert "\n" not in str(caught.value)


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
        ([1, 2], "holds no state dictionary"),
    ],
)
def test_other_files_are_refused(held: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    if isinstance(held, bytes):
        file.write_bytes(held)
    else:
        torch.save(held, file)
    with pytest.raises(ValueError, match=message):
        authors.convert(file, tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()


@pytest.mark.parametrize("projection", ["standard", "light"], indirect=True)
def test_converted_model_scores_as_before(projection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (authors, authors_layout):  # which is small enough
        monkeypatch.setattr(module, "BACKBONE", "resnet18")
    torch.manual_seed(0)
    model = CCL("resnet18", pre_trained=False, projection=projection, visualizer=False).eval()
    torch.save({"net": to_authors(model.state_dict()), "epoch": 1}, tmp_path / "net.pth")
    authors.convert(tmp_path / "net.pth", tmp_path / "ours.ckpt")
    loaded = CCL.load_from_checkpoint(tmp_path / "ours.ckpt").eval()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded.model(images).anomaly_map, model.model(images).anomaly_map)
    authors.convert(tmp_path / "ours.ckpt", tmp_path / "back.pth")
    there, back = read_authors(tmp_path / "net.pth"), read_authors(tmp_path / "back.pth")
    assert there is not None
    assert back is not None
    assert list(there) == list(back)
    assert all(torch.equal(there[name], back[name]) for name in there)
    with pytest.raises(FileExistsError, match="is there already"):
        authors.convert(tmp_path / "ours.ckpt", tmp_path / "back.pth")


def test_checkpoint_of_another_backbone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (authors, authors_layout):
        monkeypatch.setattr(module, "BACKBONE", "resnet18")
    torch.manual_seed(0)
    model = CCL("resnet18", pre_trained=False, visualizer=False)
    torch.save(to_authors(model.state_dict()), tmp_path / "net.pth")
    authors.convert(tmp_path / "net.pth", tmp_path / "ours.ckpt")
    monkeypatch.setattr(authors, "BACKBONE", "wide_resnet50_2")
    with pytest.raises(ValueError, match="is of backbone='resnet18' and projection='standard'; theirs are of 'wide_"):
        authors.convert(tmp_path / "ours.ckpt", tmp_path / "back.pth")


def test_command_converts_a_wide_resnet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = to_authors(CCL("wide_resnet50_2", pre_trained=False, visualizer=False).state_dict())
    torch.save({"net": theirs}, tmp_path / "net.pth")
    command = [sys.executable, "-m", "anomalib_ccl.authors", "net.pth", "ours.ckpt"]
    output = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert output.startswith("ours.ckpt: 612 tensors")
    back = to_authors(torch.load(tmp_path / "ours.ckpt", weights_only=True)["state_dict"])
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)
    result = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ours.ckpt is there already")
    assert "Traceback" not in result.stderr
