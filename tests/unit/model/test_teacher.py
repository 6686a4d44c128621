"""The frozen teacher and where its weights come from."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from skimage import data
from torchvision.transforms.v2.functional import resize, to_dtype, to_image

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.reconstruction.frozen_backbone import FrozenBackbone, _installed_weights, normalization
from anomalib_ccl.model.reconstruction.reverse_distillation import ReverseDistillation


def teacher_of(backbone: str, pre_trained: bool = True, weights: Path | None = None) -> FrozenBackbone:
    return ReverseDistillation(backbone, pre_trained, weights).teacher


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
    features = teacher_of(backbone, pre_trained=False).features(torch.zeros(1, 3, 64, 96))
    assert [f.shape[1] for f in features] == channels
    assert [tuple(f.shape[2:]) for f in features] == [(16, 24), (8, 12), (4, 6)]


def test_teacher_stays_in_eval_mode_and_without_gradient() -> None:
    teacher = teacher_of("resnet18", pre_trained=False).train()
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
    for features in teacher_of(backbone, weights=path).features(images):
        torch.testing.assert_close(features, by_size[tuple(features.shape)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pth", r"backbone weights not found: .*absent\.pth"),
        ("resnet34.pth", r"resnet34\.pth does not hold the weights of 'resnet18': .*layer1\.2"),
        ("broken.pth", "broken.pth is not a readable .safetensors or .pth file"),
        ("broken.safetensors", "broken.safetensors is not a readable .safetensors or .pth file"),
    ],
)
def test_files_that_do_not_hold_the_weights_are_refused(tmp_path: Path, name: str, message: str) -> None:
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "resnet34.pth")
    for broken in ("broken.pth", "broken.safetensors"):
        (tmp_path / broken).write_bytes(b"not weights")
    with pytest.raises(InputError, match=message):
        teacher_of("resnet18", weights=tmp_path / name)


def test_weights_are_loaded_without_running_code_in_them(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "was_run",)

    torch.save({"payload": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="not a readable"):
        teacher_of("resnet18", weights=tmp_path / "evil.pth")
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("wide_resnet52", r"unknown backbone 'wide_resnet52'; did you mean 'wide_resnet50_2'\?"),
        (
            "vit_tiny_patch16_224",
            "'vit_tiny_patch16_224' is taken for a vision transformer; choose a conv",
        ),
        ("mixer_b16_224", "'mixer_b16_224' gives no maps at strides 4, 8 and 16 for images of any size; choose a conv"),
        ("swin_tiny_patch4_window7_224", "gives no maps at strides 4, 8 and 16 for images of any size"),
        ("inception_v4", "gives no maps at strides 4, 8 and 16 for images of any size"),
    ],
)
def test_backbone_without_convolutional_feature_maps_is_refused(backbone: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        teacher_of(backbone, pre_trained=False)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0"])
def test_without_a_hub_and_the_offline_extra_the_error_names_the_ways_out(
    backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomalib_ccl.model.reconstruction.frozen_backbone.find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"'{backbone}' cannot be downloaded .*_weights.*anomalib-ccl\[offline\]"):
        teacher_of(backbone)


def test_installed_weights_are_taken_before_a_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: pytest.fail(f"asked for {args}"))
    teacher_of("tf_efficientnet_lite0")


@pytest.mark.parametrize(("photograph", "imagenet_class"), [("coffee", 967), ("chelsea", 285), ("rocket", 657)])
def test_offline_weights_recognise_photographs(photograph: str, imagenet_class: int) -> None:
    """Espresso, Egyptian cat and missile: only right weights, padding and batch-norm epsilon can tell."""
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(_installed_weights())
    mean, std = normalization("tf_efficientnet_lite0")
    image = resize(to_dtype(to_image(getattr(data, photograph)()), scale=True), [224, 224], antialias=True)
    image = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert imagenet_class in network(image[None]).topk(3).indices[0]


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    "use", [lambda teacher: teacher.features(torch.zeros(1, 3, 64, 64)), FrozenBackbone.state_dict]
)
def test_weights_are_loaded_when_they_are_first_used(use: Callable[[FrozenBackbone], object]) -> None:
    torch.manual_seed(0)
    teacher = teacher_of("tf_efficientnet_lite0", pre_trained=False)
    teacher.load_when_needed()
    before = torch.get_rng_state()
    use(teacher)
    assert torch.equal(torch.get_rng_state(), before)
    loaded = dict(teacher.named_parameters())
    for name, value in teacher_of("tf_efficientnet_lite0").named_parameters():
        assert torch.equal(loaded[name], value)
