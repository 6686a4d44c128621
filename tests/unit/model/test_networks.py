"""Which reconstruction network CCL is put on: names, class paths, arguments, and what a stranger gets wrong."""

import pytest
import torch
from torch import Tensor, nn

from anomalib_ccl import CCLModel
from anomalib_ccl.model.reconstruction import ReconstructionNetwork
from anomalib_ccl.model.reconstruction.choice import default_backbone, make_network


class Pixels(ReconstructionNetwork):
    """A stranger's network: a batch-normalised bottleneck on the pixels."""

    channels = (3,)
    stride = 4

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, width, 4, stride=4), nn.BatchNorm2d(width))
        self.up = nn.ConvTranspose2d(width, 3, 4, stride=4)

    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [images], [images]

    def embed(self, inputs: list[Tensor]) -> Tensor:
        return self.down(inputs[0])

    def decode(self, embedding: Tensor) -> list[Tensor]:
        return [self.up(embedding)]


class OtherShape(Pixels):
    def decode(self, embedding: Tensor) -> list[Tensor]:
        return [embedding]


class OtherInput(Pixels):
    channels = (4,)


class OneList(Pixels):
    def encode(self, images: Tensor) -> list[Tensor]:
        return [images, images]


class OtherMap(Pixels):
    def anomaly_map(self, targets: list[Tensor], reconstructed: list[Tensor], size: tuple[int, int]) -> Tensor:
        return (targets[0] - reconstructed[0]).square().mean(dim=1)


class NoPool(Pixels):
    def pool(self, embedding: Tensor) -> Tensor:
        return embedding


class NoStride(Pixels):
    stride = property()


class NoDecoder(ReconstructionNetwork):
    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return [images], [images]


def model(name: str = "Pixels", **arguments: object) -> CCLModel:
    return CCLModel(reconstruction=f"{__name__}.{name}", pre_trained=False, **arguments)


def test_a_class_path_and_its_arguments_make_a_network() -> None:
    assert model(reconstruction_args={"width": 5}).network.down[0].out_channels == 5


def test_a_strangers_network_is_trained_and_scored_by_the_defaults_of_the_interface() -> None:
    images, view = torch.rand(2, 4, 3, 32, 48)
    network = model()
    output = network.train()(images, view, embed_view=True)
    assert [m.shape for m in output.projected] == [images.shape]
    loss = network.network.reconstruction_loss(output.targets, output.reconstructed, 0.5) + output.view_embedding.sum()
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())
    prediction = network.eval()(images)
    assert prediction.anomaly_map.shape == (4, 1, 32, 48)
    assert prediction.pred_score.shape == (4, 1)


def test_second_views_leave_no_trace_in_a_strangers_batch_norm() -> None:
    images, view = torch.rand(2, 4, 3, 32, 48)
    states = []
    for embed_view in (False, True):
        torch.manual_seed(0)
        network = model(noise_probability=0).train()
        network(images, view, embed_view=embed_view)
        states.append(network.state_dict())
    assert states[0]["network.down.1.num_batches_tracked"] == 1
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reverse_destillation", r"unknown reconstruction .* did you mean 'reverse_distillation'\? It takes reverse_"),
        (
            "unet",
            "unknown reconstruction 'unet'; it takes reverse_distillation, .* class path of a network of",
        ),
        ("torch.nn.Linear", "'torch.nn.Linear' is no class derived from ReconstructionNetwork of anomalib_ccl.model"),
        ("torch.nn.Lineal", "there is no class 'torch.nn.Lineal' for reconstruction"),
        (f"{__name__}.NoDecoder", "lacks the methods decode, embed"),
        (f"{__name__}.NoStride", "lacks the attribute 'stride'"),
    ],
)
def test_a_name_that_is_no_network_is_refused_in_one_sentence(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CCLModel(reconstruction=name, pre_trained=False)


def test_arguments_that_a_network_does_not_take_are_refused_with_those_that_it_takes() -> None:
    with pytest.raises(ValueError, match="unexpected keyword argument 'witdh'; its reconstruction_args are: width"):
        model(reconstruction_args={"witdh": 5})
    with pytest.raises(ValueError, match=r"Pixels' has no backbone; leave backbone='resnet18' away"):
        model(backbone="resnet18")
    with pytest.raises(ValueError, match=r"Pixels has no pre-trained teacher; leave backbone_weights='x.pth' away"):
        model().network.load_when_needed("x.pth")


def test_maps_of_the_wrong_shape_are_refused_with_both_shapes() -> None:
    images = torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"OtherShape has targets of shape \(2, 3, 32, 32\), but decode gave \(2, 8, "):
        model("OtherShape").train()(images)
    with pytest.raises(ValueError, match=r"OtherInput has maps of 4 channels to project, .* shape \(2, 3, 32, 32\)"):
        model("OtherInput").train()(images)


def test_other_things_than_the_interface_says_are_refused_in_one_sentence() -> None:
    images = torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"of OneList must give two lists of maps, .* but gave: Tensor, Tensor"):
        model("OneList").train()(images)
    with pytest.raises(ValueError, match=r"of OtherMap gave \(2, 32, 32\), not \(2, 1, 32, 32\)"):
        model("OtherMap").eval()(images)
    with pytest.raises(ValueError, match=r"of NoPool gave \(2, 8, 8, 8\), not one vector for each of 2 images"):
        model("NoPool").eval()(images)


def test_a_network_without_a_backbone_has_no_default_one() -> None:
    assert default_backbone("reverse_distillation") == "wide_resnet50_2"
    assert default_backbone(f"{__name__}.Pixels") is None


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_layers_that_are_not_used_are_left_out_and_ignored_in_weights_that_hold_them(backbone: str) -> None:
    network = make_network("reverse_distillation", backbone, pre_trained=False)
    state = network.state_dict()
    unused = [f"bottleneck.{name}" for name in ("conv4.weight", "bn4.weight", "bn4.running_mean")]
    assert not any(name in state for name in unused)
    earlier = {**state, **{name: torch.zeros(1) for name in unused}}
    network.load_state_dict(earlier)
    wrapped = CCLModel(backbone, pre_trained=False)
    wrapped.load_state_dict({**wrapped.state_dict(), **{f"network.{name}": torch.zeros(1) for name in unused}})
    with pytest.raises(RuntimeError, match="conv5"):
        network.load_state_dict({**state, "bottleneck.conv5.weight": torch.zeros(1)})
