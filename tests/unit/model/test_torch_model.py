"""The network: shapes, projections, noise and the anomaly map."""

import pytest
import torch
from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode, AnomalyMapGenerator
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.anomaly_map import anomaly_map
from anomalib_ccl.model.projection import projection_layer
from anomalib_ccl.model.torch_model import CCLModel

BACKBONES = ["resnet18", "test_efficientnet"]


@pytest.fixture(scope="module")
def model() -> CCLModel:
    torch.manual_seed(0)
    return CCLModel("resnet18", pre_trained=False)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("projection", ["standard", "light", "none"])
def test_training_step_reconstructs_every_map_and_reaches_every_trainable_weight(
    backbone: str, projection: str
) -> None:
    model = CCLModel(backbone, pre_trained=False, projection=projection).train()
    images, view = torch.rand(2, 2, 3, 64, 96)
    output = model.training_pass(images, view)
    shapes = [f.shape for f in output.targets]
    for maps in (output.inputs, output.projected, output.reconstructed, output.view_inputs, output.view_projected):
        assert [m.shape for m in maps] == shapes
    assert output.embedding.ndim == 2
    sum(m.square().mean() for m in output.reconstructed).backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize("backbone", BACKBONES)
def test_embedding_second_views_changes_nothing_for_the_images_and_leaves_no_trace(backbone: str) -> None:
    images, view = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    outputs, states = [], []
    for embed_view in (False, True):
        torch.manual_seed(0)
        model = CCLModel(backbone, pre_trained=False, noise_probability=0).train()
        outputs.append(model.training_pass(images, view, embed_view=embed_view))
        states.append(model.state_dict())
    assert torch.equal(outputs[0].embedding, outputs[1].embedding)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(name.endswith("num_batches_tracked") and value > 0 for name, value in states[1].items())
    assert outputs[0].view_embedding is None
    # By the statistics of the views: they are embedded as images are that take their place.
    torch.manual_seed(0)
    alone = CCLModel(backbone, pre_trained=False, noise_probability=0).train().training_pass(view)
    torch.testing.assert_close(outputs[1].view_embedding, alone.embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_of_the_view_embedding_reach_bottleneck_and_projections(backbone: str) -> None:
    model = CCLModel(backbone, pre_trained=False).train()
    images, view = torch.rand(2, 1, 3, 64, 64)
    model.training_pass(images, view, embed_view=True).view_embedding.square().sum().backward()
    trained = [*model.network.bottleneck.parameters(), *model.projections.parameters()]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained if p.requires_grad)
    assert all(p.grad is None for p in model.network.decoder.parameters())


def test_anomaly_map_is_the_blurred_sum_of_cosine_distances(model: CCLModel) -> None:
    model.eval()
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prediction = model(images)
        features, inputs = model.network.encode(images)
        reconstructed = model.network.decode(model.network.embed(model._project(inputs)))
        expected = sum(
            F.interpolate(1 - F.cosine_similarity(f, d, dim=1)[:, None], (64, 96), mode="bilinear", align_corners=True)
            for f, d in zip(features, reconstructed, strict=True)
        )
    assert prediction.pred_label is prediction.pred_mask is None
    assert prediction.class_index.tolist() == [0, 0]
    assert torch.equal(prediction.raw_score, prediction.pred_score)
    torch.testing.assert_close(prediction.anomaly_map, gaussian_blur(expected, [33, 33], [4.0, 4.0]))
    assert torch.equal(prediction.pred_score, prediction.anomaly_map.amax(dim=(2, 3)))


@pytest.mark.parametrize("size", [(4, 4), (64, 80), (31, 64)])
def test_images_that_do_not_fit_the_stride_are_refused_with_their_size(model: CCLModel, size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"images of {size[0]} × {size[1]} pixels do not fit .* multiples of 32"):
        model.eval()(torch.zeros(1, 3, *size))


def test_smallest_image_of_one_stride_is_scored(model: CCLModel) -> None:
    assert model.eval()(torch.rand(1, 3, 32, 32)).pred_score.isfinite().all()


def test_standard_projection_has_four_convolutions_down_to_a_quarter_of_the_channels() -> None:
    convolutions = [m for m in projection_layer(64).modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size) for c in convolutions] == [
        (64, 32, (3, 3)),
        (32, 16, (3, 3)),
        (16, 32, (3, 3)),
        (32, 64, (3, 3)),
    ]


def test_with_a_skip_the_bottleneck_gets_the_features_at_unit_scale_and_the_losses_the_projections_alone() -> None:
    torch.manual_seed(0)
    model = CCLModel("resnet18", pre_trained=False, skip=True, noise_probability=0).train()
    seen: list[list[torch.Tensor]] = []
    model.network.bottleneck.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output = model.training_pass(*torch.rand(2, 2, 3, 64, 96), embed_view=True)
    for given, features, projected in (
        (seen[0], output.inputs, output.projected),
        (seen[1], output.view_inputs, output.view_projected),
    ):
        for g, f, p in zip(given, features, projected, strict=True):
            for i in range(2):
                unit = (f[i] - f[i].mean()) / (f[i].var(unbiased=False) + 1e-5).sqrt()
                torch.testing.assert_close(g[i] - p[i], unit, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"anomaly_map": "sharp"}, "unknown anomaly_map 'sharp'; choose one of paper, refined"),
        ({"projection": "heavy"}, "unknown projection 'heavy'; choose one of standard, light, none"),
        ({"noise_probability": -0.1}, r"noise_probability must lie in \[0, 1\], got -0.1"),
        ({"noise_probability": 1.1}, r"noise_probability must lie in \[0, 1\], got 1.1"),
        ({"memory": -1}, "memory must be a number of vectors from 0 on, .* got -1"),
        ({"reconstructs": False}, "from 1 on without a reconstruction; got 0"),
    ],
)
def test_bad_arguments_are_named_with_the_way_out(argument: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CCLModel("resnet18", pre_trained=False, **argument)


def test_noise_is_unit_gaussian_on_half_of_the_positions_and_on_whole_feature_vectors() -> None:
    model = CCLModel("resnet18", pre_trained=False, noise_probability=1.0)
    torch.manual_seed(0)
    (noise,) = model._add_noise([torch.zeros(8, 64, 32, 32)])
    disturbed = noise.ne(0).any(dim=1)
    assert torch.equal(noise.ne(0).all(dim=1), disturbed)
    assert disturbed.float().mean().item() == pytest.approx(0.5, abs=0.02)
    values = noise.movedim(1, -1)[disturbed]
    assert values.mean().item() == pytest.approx(0, abs=0.01)
    assert values.std().item() == pytest.approx(1, abs=0.01)


def test_noise_comes_with_its_probability_per_step() -> None:
    model = CCLModel("resnet18", pre_trained=False)
    torch.manual_seed(0)
    noisy = [bool(model._add_noise([torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 9, 9)])[1].any()) for _ in range(2000)]
    assert sum(noisy) / len(noisy) == pytest.approx(0.309, abs=0.03)


def test_noise_is_for_training_only(model: CCLModel) -> None:
    images = torch.rand(1, 3, 64, 64)
    scores = {model.eval()(images).pred_score.item() for _ in range(10)}
    assert len(scores) == 1


def test_anomaly_map_is_that_of_anomalib() -> None:
    features, reconstructed = ([torch.randn(2, 8 << i, 32 >> i, 24 >> i) for i in range(3)] for _ in range(2))
    expected = AnomalyMapGenerator((128, 96), 4, AnomalyMapGenerationMode.ADD)(features, reconstructed)
    torch.testing.assert_close(anomaly_map(features, reconstructed, (128, 96)), expected, rtol=1e-5, atol=1e-5)
