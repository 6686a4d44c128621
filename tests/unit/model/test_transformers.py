"""Reconstruction on vision transformers: shapes at any size and patch, recipes, and backbones that do not fit."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from anomalib_ccl import CCL, CCLModel
from anomalib_ccl.errors import InputError
from anomalib_ccl.model.reconstruction.dinomaly import Dinomaly
from anomalib_ccl.model.reconstruction.frozen_backbone import TransformerTeacher
from anomalib_ccl.model.reconstruction.vit import ViT

# The shallow ones of any patch, with and without class and register tokens; DINOv2's have patches of 14 pixels.
PLAIN = ["test_vit", "vit_small_patch8_224.dino", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"]


@pytest.mark.parametrize("backbone", PLAIN)
def test_every_plain_vit_reconstructs_its_maps_at_any_size_that_the_patch_divides(backbone: str) -> None:
    model = CCLModel(backbone, pre_trained=False, reconstruction="vit")
    stride, channels = model.network.stride, model.network.channels
    images, view = torch.randn(2, 2, 3, 2 * stride, 3 * stride)
    output = model.train().training_pass(images, view, embed_view=True)
    expected = (2, *channels, 2, 3)
    assert [m.shape for m in output.targets] == [m.shape for m in output.reconstructed] == [expected] * 3
    assert [m.shape for m in (*output.inputs, *output.projected, *output.view_projected)] == [expected] * 3
    loss = model.network.reconstruction_loss(output.targets, output.reconstructed, 0) + output.view_embedding.sum()
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # Instance norm takes the bias of the convolution before it away.
    assert all(name.startswith("projections.") and name.endswith("bias") for name in missing)


def test_targets_are_quarters_of_the_blocks_without_class_tokens_and_the_decoder_goes_the_same_way_back() -> None:
    network = ViT("vit_tiny_patch16_224", pre_trained=False)
    seen: list[torch.Tensor] = []
    for block in (*network.teacher.feature_extractor.blocks, *network.decoder.blocks):
        block.register_forward_hook(lambda _, inputs, output: seen.append(output))
    targets, inputs = network.encode(torch.randn(1, 3, 32, 48))
    for number, found in zip((3, 6, 9, 12), (*targets, *inputs), strict=True):
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), seen[number - 1][:, 1:])
    maps = network.decode(network.embed(inputs))
    assert len(seen) == 12 + 9
    for number, found in zip((9, 6, 3), maps, strict=True):
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), seen[12 + number - 1])


def test_score_of_vit_is_the_maximum_after_a_mean_over_16_pixels() -> None:
    network = ViT("test_vit", pre_trained=False)
    anomaly_map = torch.zeros(2, 1, 64, 64)
    anomaly_map[0, 0, 3, 60] = 1
    anomaly_map[1, 0, 8:24, 8:24] = 0.5
    torch.testing.assert_close(network.score(anomaly_map), torch.tensor([[1 / 256], [0.5]]))


@pytest.mark.parametrize(
    ("network", "size", "noise", "temperature", "group"),
    [
        ("vit", (256, 256), 0, 0.1, {"lr": 1e-4, "weight_decay": 1e-4}),
        ("dinomaly", (384, 384), 0, 0.05, {"lr": 2e-3, "weight_decay": 1e-4, "amsgrad": True}),
    ],
)
def test_defaults_are_those_of_the_network(
    network: str, size: tuple[int, int], noise: float, temperature: float, group: dict[str, Any]
) -> None:
    model = CCL("vit_tiny_patch16_224", pre_trained=False, reconstruction=network, visualizer=False)
    assert model.hparams["image_size"] == tuple(model.input_size) == size
    assert model.model.noise_probability == noise
    assert model.loss.local.temperature == temperature
    recipe = model.model.network.recipe
    optimizer = recipe.optimizer(model.model.network, model.model.projections)
    (found,) = optimizer.param_groups
    assert {name: found[name] for name in group} == group
    assert {id(p) for p in found["params"]} == {id(p) for p in model.parameters() if p.requires_grad}


def test_dinomaly_warms_up_step_by_step_in_trainings_of_any_length() -> None:
    layer = nn.Linear(2, 2)
    for steps, warm in ((5000, 100), (10, 5), (1, 0), (float("inf"), 100)):
        optimizer = Dinomaly.recipe.optimizer(layer, nn.Identity())
        schedule = Dinomaly.recipe.schedule(optimizer, steps)
        rates = []
        for _ in range(int(min(steps, 200))):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert max(rates) == pytest.approx(2e-3, rel=0.01)
        assert rates.index(max(rates)) in (warm - 1, warm)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backbone": "resnet18", "reconstruction": "vit"},
            "'resnet18' is no plain vision transformer of timm",
        ),
        ({"backbone": "vit_tiny_r_s16_p8_224", "reconstruction": "vit"}, "is no plain vision transformer of timm"),
        ({"backbone": "test_vit", "reconstruction": "dinomaly"}, "'test_vit' has 6 blocks; .* of 12, 24, 32"),
        ({"backbone": "vit_base_patch16_siglip_224", "reconstruction": "dinomaly"}, "has no class token"),
        (
            {"backbone": "test_vit", "reconstruction": "vit", "image_size": (16, 16)},
            "multiples of 16 pixels and at least 32, got 16 × 16",
        ),
        (
            {"backbone": "test_vit", "reconstruction": "vit", "image_size": (64, 72)},
            "multiples of 16 pixels and at least 32, got 64 × 72",
        ),
        (
            {"backbone": "test_vit", "reconstruction": "vit", "research": {"reconstruction_args": {"depth": 3}}},
            "'depth'; .*: none",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        CCL(pre_trained=False, **arguments)
    assert "\n" not in str(refused.value)


def test_weights_of_a_file_are_those_of_the_teacher_and_others_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    torch.save(state, tmp_path / "vit.pth")
    teacher = TransformerTeacher("test_vit", lambda depth: [depth], weights=tmp_path / "vit.pth")
    assert all(torch.equal(value, state[name]) for name, value in teacher.feature_extractor.state_dict().items())
    torch.save({**state, "blocks.9.norm1.weight": torch.ones(64)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="does not hold the weights of 'test_vit'"):
        TransformerTeacher("test_vit", lambda depth: [depth], weights=tmp_path / "other.pth")
