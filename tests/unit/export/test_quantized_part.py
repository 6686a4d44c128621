"""Of an exported graph, the network alone is quantised: not the images' resizing, nor what compares and scores."""

from pathlib import Path

import numpy as np
from openvino import Model
from openvino import opset13 as ops

from anomalib_ccl import MultiCategory
from anomalib_ccl.data.reading import PixelRanges
from anomalib_ccl.export.quantization import network_of, validation_images


def constant(name: str, *shape: int):
    return ops.constant(np.ones(shape, np.float32), name=name)


def graph(attention: bool) -> Model:
    """Resize, convolve or attend, recognise a class, look patches up in its memory, smooth, divide by its limit."""
    image = ops.parameter([1, 3, 8, 8], np.float32, name="input")
    resized = ops.matmul(image, constant("columns", 8, 8), False, False, name="resize")
    features = resized
    for number in range(3):
        weights = constant(f"weights{number}", 4, 3 if number == 0 else 4, 3, 3)
        features = ops.convolution(features, weights, [1, 1], [1, 1], [1, 1], [1, 1], name=f"conv{number}")
    if attention:
        features = ops.matmul(features, constant("mlp", 8, 8), False, False, name="attend")
    embedding = ops.reduce_mean(features, np.array([2, 3]), name="embedding")
    similarity = ops.matmul(embedding, constant("folded", 2, 4), False, True, name="compare")
    index = ops.squeeze(ops.topk(similarity, 1, 1, "max", "value").output(1), np.array([1]), name="class")
    index.output(0).set_names({"class_index"})
    patches = ops.reshape(features, np.array([1, 64, 4]), False, name="patches")
    patches = ops.matmul(patches, constant("model.memory.components", 4, 4), False, False, name="components")
    own = ops.gather(constant("model.memory.vectors", 3, 5, 4), index, 0, name="own")
    distance = ops.reduce_min(ops.matmul(patches, own, False, True, name="look up"), np.array([2]), name="nearest")
    grid = ops.reshape(distance, np.array([1, 1, 8, 8]), False, name="grid")
    smooth = ops.convolution(grid, constant("gauss", 1, 1, 3, 3), [1, 1], [1, 1], [1, 1], [1, 1], name="smooth")
    limit = ops.gather(constant("limits", 3), index, 0, name="limit")
    return Model([ops.divide(smooth, limit, name="calibrated")], [image])


def test_convolutions_after_the_second_are_quantised_and_nothing_that_scores() -> None:
    network, has_products = network_of(graph(attention=False))
    assert network == {"weights0", "weights1", "weights2", "conv2"}
    assert not has_products


def test_matrix_products_of_a_transformer_are_quantised_and_no_other_products() -> None:
    network, has_products = network_of(graph(attention=True))
    assert network == {"weights0", "weights1", "weights2", "conv2", "mlp", "attend"}
    assert has_products


def test_images_that_give_the_ranges_are_as_white_as_those_of_the_training(two_categories: Path) -> None:
    data, ranges = MultiCategory(root=two_categories, num_workers=0), PixelRanges((0, 4095))
    assert validation_images(data, None).dataset.ranges == PixelRanges()
    assert validation_images(data, ranges).dataset.ranges == ranges
