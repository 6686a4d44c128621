"""Which reconstruction network CCL is put on: names, class paths, arguments, and the defaults of its interface."""

import pytest
import torch
from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
from torch import Tensor, nn

from anomalib_ccl import CCLModel
from anomalib_ccl.errors import InputError
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


def model(name: str = "Pixels", **arguments: object) -> CCLModel:
    return CCLModel(reconstruction=f"{__name__}.{name}", pre_trained=False, **arguments)


def test_a_strangers_network_is_trained_and_scored_by_the_defaults_of_the_interface() -> None:
    images, view = torch.rand(2, 4, 3, 32, 48)
    network = model(reconstruction_args={"width": 5})
    assert network.network.down[0].out_channels == 5
    output = network.train().training_pass(images, view, embed_view=True)
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
        network.training_pass(images, view, embed_view=embed_view)
        states.append(network.state_dict())
    assert states[0]["network.down.1.num_batches_tracked"] == 1
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reverse_destillation", r"unknown reconstruction .* did you mean 'reverse_distillation'\? It takes reverse_"),
        ("unet", "unknown reconstruction 'unet'; it takes reverse_distillation, .* class path of a network of"),
        ("torch.nn.Linear", "no class 'torch.nn.Linear' derived from ReconstructionNetwork of anomalib_ccl.model"),
        ("torch.nn.Lineal", "no class 'torch.nn.Lineal' derived from ReconstructionNetwork"),
    ],
)
def test_a_name_that_is_no_network_is_refused_in_one_sentence(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CCLModel(reconstruction=name, pre_trained=False)


def test_arguments_that_a_network_does_not_take_are_refused_with_those_that_it_takes() -> None:
    with pytest.raises(InputError, match="unexpected keyword argument 'witdh'; its reconstruction_args are: width"):
        model(reconstruction_args={"witdh": 5})
    assert default_backbone(f"{__name__}.Pixels") is None
    with pytest.raises(InputError, match=r"Pixels' has no backbone; leave backbone='resnet18' away"):
        model(backbone="resnet18")
    with pytest.raises(InputError, match=r"Pixels has no pre-trained teacher; leave backbone_weights='x.pth' away"):
        model().network.load_when_needed("x.pth")


def test_reconstruction_loss_and_gradient_are_those_of_anomalibs_reverse_distillation() -> None:
    torch.manual_seed(0)
    targets = [torch.randn(3, 4, 6, 5), torch.randn(3, 8, 3, 2)]
    reconstructed = [torch.randn_like(target).requires_grad_() for target in targets]
    actual = Pixels().reconstruction_loss(targets, reconstructed, 0)
    expected = ReverseDistillationLoss()(targets, reconstructed)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, reconstructed), torch.autograd.grad(expected, reconstructed))


def test_reconstruction_loss_is_finite_for_zero_maps_and_in_single_precision_for_half() -> None:
    zero = torch.zeros(2, 3, 4, 4, requires_grad=True)
    Pixels().reconstruction_loss([torch.zeros(2, 3, 4, 4)], [zero], 0).backward()
    assert zero.grad.isfinite().all()
    f, d = (torch.randn(2, 64, 32, 32).bfloat16() for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Pixels().reconstruction_loss([f], [d], 0)
    torch.testing.assert_close(loss, Pixels().reconstruction_loss([f.float()], [d.float()], 0))


def test_layers_of_anomalibs_bottleneck_that_are_not_used_are_left_out() -> None:
    state = make_network("reverse_distillation", "resnet18", pre_trained=False).state_dict()
    assert not [name for name in state if name.startswith(("bottleneck.conv4", "bottleneck.bn4"))]
