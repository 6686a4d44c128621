"""CCL on a network of your own: a small convolutional autoencoder on pixels, trained, calibrated, exported to OpenVINO.

anomalib-ccl sample ./datasets/sample
python examples/own_network.py ./datasets/sample 10
"""

import sys

from anomalib.engine import Engine
from torch import Tensor, nn

from anomalib_ccl import CCL, MultiCategory
from anomalib_ccl.model.reconstruction import Recipe, ReconstructionNetwork


class PixelAutoencoder(ReconstructionNetwork):
    """What is projected, and what is reconstructed, are the pixels."""

    channels = (3,)  # of the maps that are projected
    stride = 8  # what the sides of an image must be multiples of
    recipe = Recipe(image_size=(64, 64), noise_probability=0.0)  # all else as for reverse distillation

    def __init__(self, width: int = 16) -> None:  # CCL(research={"reconstruction_args": {"width": 32}}) sets it
        super().__init__()
        pairs = [(3, width), (width, 2 * width), (2 * width, 4 * width)]
        down = (nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.GELU()) for a, b in pairs)
        up = (nn.Sequential(nn.GELU(), nn.ConvTranspose2d(b, a, 4, 2, 1)) for a, b in reversed(pairs))
        self.down, self.up = nn.Sequential(*down), nn.Sequential(*up)

    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Give targets and inputs."""
        return [images], [images]

    def embed(self, inputs: list[Tensor]) -> Tensor:
        """Make a map of 4 × width channels, by whose mean the products are told apart."""
        return self.down(inputs[0])

    def decode(self, embedding: Tensor) -> list[Tensor]:
        """Reconstruct the targets."""
        return [self.up(embedding)]

    def reconstruction_loss(self, targets: list[Tensor], reconstructed: list[Tensor], progress: float) -> Tensor:
        """Compare pixels, not directions of features, which is the default."""
        return (targets[0] - reconstructed[0]).square().mean()

    def anomaly_map(self, targets: list[Tensor], reconstructed: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Compare pixels here too."""
        return (targets[0] - reconstructed[0]).square().mean(dim=1, keepdim=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    root, epochs = sys.argv[1:]
    # By its class path, so in a module that Python finds; on the command line --model.reconstruction does the same.
    model = CCL(reconstruction="own_network.PixelAutoencoder")
    engine = Engine(max_epochs=int(epochs))
    engine.train(model, datamodule=MultiCategory("MVTecAD", root))
    print(engine.export(model, export_type="openvino"))
