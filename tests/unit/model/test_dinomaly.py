"""Dinomaly without a projection and without contrastive losses, against anomalib's for the same weights and seed."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anomalib.models.components import TimmFeatureExtractor
from anomalib.models.image.dinomaly import torch_model
from anomalib.models.image.dinomaly.torch_model import DinomalyModel
from torch import Tensor

from anomalib_ccl import CCL, CCLModel
from anomalib_ccl.model.reconstruction.recipe import Progress

BACKBONE = "vit_small_patch14_reg4_dinov2"
WEIGHTS = {"local_weight": 0, "global_weight": 0}


@pytest.fixture(scope="module", params=[False, True], ids=["tokens", "recentred"])
def pair(request: pytest.FixtureRequest) -> tuple[CCL, DinomalyModel]:
    """Ours, and anomalib's with the same weights."""

    def without_weights(*, pre_trained: bool, **arguments: Any) -> TimmFeatureExtractor:
        assert pre_trained
        return TimmFeatureExtractor(pre_trained=False, **arguments)

    torch.manual_seed(0)
    recentred = request.param
    ours = CCL(
        BACKBONE,
        pre_trained=False,
        reconstruction="dinomaly",
        research={"reconstruction_args": {"use_context_recentering": recentred}, "projection": "none", **WEIGHTS},
        visualizer=False,
    )
    with pytest.MonkeyPatch.context() as patch:  # its weights come from a hub, and it has no argument for it
        patch.setattr(torch_model, "TimmFeatureExtractor", without_weights)
        theirs = DinomalyModel(BACKBONE, use_context_recentering=recentred)
    network = ours.model.network
    theirs.encoder.load_state_dict(network.teacher.state_dict())
    theirs.bottleneck.load_state_dict(network.bottleneck.state_dict())
    theirs.decoder.load_state_dict(network.decoder.state_dict())
    ours.classes.index_of_image = {"a": 0, "b": 1}
    return ours, theirs


def images() -> Tensor:
    return torch.randn(2, 3, 56, 84, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("step", [0, 300, 5000])
def test_losses_and_gradients_are_anomalibs(
    pair: tuple[CCL, DinomalyModel], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pair
    monkeypatch.setattr(CCL, "progress", Progress(step, 5000))
    ours.train()
    theirs.train()
    ours.zero_grad()
    theirs.zero_grad()
    torch.manual_seed(2)
    loss = ours.training_step(SimpleNamespace(image=images(), image_path=["a", "b"]))["loss"]
    loss.backward()
    torch.manual_seed(2)
    expected = theirs(images(), global_step=step)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    network = ours.model.network
    for mine, part in ((network.bottleneck, theirs.bottleneck), (network.decoder, theirs.decoder)):
        gradients = {name: p.grad for name, p in part.named_parameters()}
        torch.testing.assert_close({name: p.grad for name, p in mine.named_parameters()}, gradients)
        assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_maps_and_scores_are_anomalibs(pair: tuple[CCL, DinomalyModel]) -> None:
    ours, theirs = (model.eval() for model in pair)
    with torch.no_grad():
        found, expected = ours.model(images()), theirs(images())
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map)
    torch.testing.assert_close(found.pred_score[:, 0], expected.pred_score)


def test_hard_positions_count_from_the_step_or_else_the_share_of_anomalibs_5000() -> None:
    network = CCLModel("vit_tiny_patch16_224", False, reconstruction="dinomaly").network
    maps = [torch.randn(2, 8, 4, 4, requires_grad=True) for _ in range(2)]
    for progress, share in ((Progress(100, 200), 0.09), (0.02, 0.09), (Progress(2000, math.inf), 0.9)):
        network.reconstruction_loss(maps, maps, progress)
        assert network.loss.p == pytest.approx(share)
