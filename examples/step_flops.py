"""Counts the floating-point operations of a training step, a multiplication and an addition as two.

    python examples/step_flops.py
    python examples/step_flops.py --model.image_size [512,512]
    python examples/step_flops.py --batch_size 8 --model.backbone resnet18

It takes all arguments of CCL. The step is computed on four images of two classes, which needs some GB of memory for
large networks, and scaled to the batch: what grows faster than the batch, the comparison of embeddings, is too little
to count.
"""

import torch
from jsonargparse import ArgumentParser
from torch.utils.flop_counter import FlopCounterMode

from anomalib_ccl import CCL

IMAGES = 4


def main() -> None:
    """Build the model, compute a step, and print what was counted."""
    parser = ArgumentParser(description="Count the floating-point operations of a training step.")
    parser.add_argument("--batch_size", type=int, default=16, help="images in a batch")
    parser.add_class_arguments(CCL, "model")
    parser.set_defaults({"model.pre_trained": False})  # the same operations
    arguments = parser.instantiate_classes(parser.parse_args())
    model, batch_size = arguments.model.train(), arguments.batch_size
    images, view = torch.rand(2, IMAGES, 3, *model.input_size)
    with FlopCounterMode(display=False) as forward:
        view = view if model.loss.needs_view else None
        output = model.model.training_pass(images, view, None, model.loss.compares_views)
        reconstruction = model.model.network.reconstruction_loss(output.targets, output.reconstructed, progress=0)
        loss, _ = model.loss(reconstruction, output, torch.tensor([0, 0, 1, 1]), lambda *of_one_process: of_one_process)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    scale = batch_size / IMAGES
    for name, counter in (("forward", forward), ("backward", backward)):
        print(f"{name:9} {scale * counter.get_total_flops() / 1e12:8.3f} TFLOP")
    total = forward.get_total_flops() + backward.get_total_flops()
    print(f"{'step':9} {scale * total / 1e12:8.3f} TFLOP in a batch of {batch_size}")


if __name__ == "__main__":
    main()
