"""CCL as an anomalib model (Fan et al., https://arxiv.org/abs/2412.04769)."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from anomalib_ccl.classes.clustering import ClassCount
from anomalib_ccl.classes.labels import ClassLabels
from anomalib_ccl.classes.training_classes import TrainingClasses
from anomalib_ccl.data.reading import PixelRanges
from anomalib_ccl.data.samples import datasets_of
from anomalib_ccl.errors import InputError
from anomalib_ccl.export import checkpoint as checkpoints
from anomalib_ccl.export.export import CCLExport
from anomalib_ccl.export.pre_processor import default_pre_processor
from anomalib_ccl.export.restorable import Restorable
from anomalib_ccl.model.outputs import Prediction
from anomalib_ccl.model.reconstruction.choice import check_image_size, default_backbone, default_image_size
from anomalib_ccl.model.reconstruction.frozen_backbone import normalization
from anomalib_ccl.model.tiling import Tiling
from anomalib_ccl.model.torch_model import CCLModel
from anomalib_ccl.model.total_loss import TotalLoss
from anomalib_ccl.reports.heatmaps import CCLVisualizer
from anomalib_ccl.reports.report import Report
from anomalib_ccl.training.completion import Completion
from anomalib_ccl.training.epoch_seed import EpochSeed
from anomalib_ccl.training.feature_cache import Encoded, FeatureCache
from anomalib_ccl.training.learning import Learning
from anomalib_ccl.training.length import check_trainer
from anomalib_ccl.training.news import TrainingNews
from anomalib_ccl.training.options import RecipeName, Research, chosen, given_research, loss_of, network_of
from anomalib_ccl.training.post_processor import LimitPostProcessor
from anomalib_ccl.training.scoring import Scoring
from anomalib_ccl.training.views import second_view_for

logger = logging.getLogger(__name__)


class CCL(Learning, Scoring, Restorable, CCLExport, AnomalibModule):
    """One anomaly detection model for many product categories: class-aware contrastive learning.

    A reconstruction network whose projected features are shaped by two contrastive losses. They use the category of
    each normal training image, so that the model does not reconstruct one product as another. A checkpoint knows its
    architecture: an argument that is given and contradicts it is refused when it is loaded.

    Args:
        backbone: Name of a convolutional timm model for the teacher; the checkpoint's, else wide_resnet50_2. Networks
            other than reverse distillation take others: "vit" and "dinomaly" plain vision transformers.
        image_size: Height and width that images are resized to, in pixels, multiples of the network's stride (of 32 for
            reverse distillation); the checkpoint's, else the network's. A pre-processor of your own takes precedence.
        recipe: Options that belong together: "paper", the default, is the paper's method; "recommended" finds more
            defects on real products; "memory" trains nothing and is ready after two passes over the images.
        memory: Vectors that are remembered of each class, 0 for none; the checkpoint's, else the recipe's: 500, and
            none in the paper's.
        class_labels: Where the class of a training image comes from: "category" (the datamodule knows it),
            "folder" (the first folder in which the image paths differ), "pseudo" (clusters of the teacher's
            features, found before the first epoch), or "auto" (the category where the datamodule knows it, else
            pseudo); the checkpoint's, else "auto".
        n_pseudo_classes: Number of pseudo-classes, at most that of the training images, or "auto": 1 to 50, by
            the silhouette of the clusters; the checkpoint's, else "auto".
        false_alarm_rate: Share of normal images of each class that may be called anomalous, in (0, 0.5]; sets the
            threshold from the normal training images alone; the checkpoint's, else 0.01. Another one needs no training.
        tiles: Rows and columns of tiles that large images are cut into, each of image_size and overlapping the next by
            a quarter: [2, 3] of 256 pixels cover 448 × 640; the checkpoint's, else one. A step trains on one of each.
        reconstruction: The reconstruction network: "reverse_distillation", "vit" (ViTAD), "dinomaly", or the path of a
            class derived from anomalib_ccl.model.reconstruction.ReconstructionNetwork; the checkpoint's, or the first.
        pre_trained: Whether the teacher uses timm's pre-trained weights, where no checkpoint brings them along.
        backbone_weights: A .safetensors or .pth file with the teacher's weights instead.
        feature_cache: Folder in which a training keeps the teacher's features of the training images, so that from the
            second epoch on the teacher runs on changed images only. It takes 0.25 MiB of disk for each image with
            tf_efficientnet_lite0 (160 × 160 pixels), 7 MiB with wide_resnet50_2 (256 × 256 pixels).
        calibrate: Whether the model, when it is trained, learns to recognise each class and divides maps and scores
            by the limit of the class, so that one threshold fits all; it does unless this is False.
        research: What only a researcher sets, such as the weights of the losses; see
            :class:`~anomalib_ccl.training.options.Research`.
        pre_processor: Pre-processor instance, or whether to use the default: resize, then normalise with the
            backbone's own mean and standard deviation.
        post_processor: Post-processor instance, or whether to use the default, whose threshold is the limit of the
            class; with calibrate=False anomalib's.
        evaluator: Evaluator instance, or whether to use anomalib's default.
        visualizer: Visualizer instance, or whether to use the default, which writes one picture for each image.

    Raises:
        InputError: If an argument is out of its range, or the backbone is unknown or not one for the network.

    Example:
        >>> model = CCL(backbone="resnet18", pre_trained=False)
        >>> tuple(model.input_size)
        (256, 256)
    """

    model: CCLModel
    loss: TotalLoss

    def __init__(
        self,
        backbone: str | None = None,
        image_size: tuple[int, int] | None = None,
        recipe: RecipeName | None = None,
        memory: int | None = None,
        class_labels: ClassLabels | None = None,
        n_pseudo_classes: ClassCount | None = None,
        false_alarm_rate: float | None = None,
        tiles: tuple[int, int] | None = None,
        reconstruction: str | None = None,
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        feature_cache: str | Path | None = None,
        calibrate: bool | None = None,
        research: Research | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        names = (*checkpoints.ARCHITECTURE, *checkpoints.CLASSES)
        given = {name: value for name, value in locals().items() if name in names}
        given |= {"research": given_research(research), "false_alarm_rate": false_alarm_rate}
        components = (pre_processor, post_processor, evaluator, visualizer)
        given |= {name: c for name, c in zip(checkpoints.COMPONENTS, components, strict=True) if c is not True}
        given = {name: checkpoints.plain(name, value) for name, value in given.items() if value is not None}
        # Resolved here, as plain data, whatever a config gave: hyper-parameters are saved in the checkpoint.
        recipe = recipe or "paper"
        settings, remembered = chosen(recipe, given["research"])
        research = given["research"]
        memory = remembered if memory is None else memory
        reconstruction = reconstruction or "reverse_distillation"
        backbone = backbone or default_backbone(reconstruction)
        calibrate, tiles = calibrate is not False, given.get("tiles", (1, 1))
        class_labels, n_pseudo_classes = given.get("class_labels", "auto"), given.get("n_pseudo_classes", "auto")
        false_alarm_rate = 0.01 if false_alarm_rate is None else false_alarm_rate
        if not calibrate and (memory or "false_alarm_rate" in given):
            msg = "memory and false_alarm_rate need calibrate=True, which finds the memory and the limit of each class"
            raise InputError(msg)
        model = network_of(locals())
        image_size = given.get("image_size", default_image_size(model.network))
        if post_processor is True and calibrate:
            post_processor = LimitPostProcessor()
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(image_size, backbone, tiles)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.given, self.model, self.calibrate = given, model, calibrate
        if pre_trained or backbone_weights is not None:
            self.model.network.load_when_needed(backbone_weights)
        check_image_size(self.input_size, self.model.network.stride, self.model.tiling)
        self.loss, self.schedule = loss_of(settings, model), settings.schedule
        self.classes = TrainingClasses(class_labels, n_pseudo_classes)
        self.feature_cache = None if feature_cache is None else FeatureCache(feature_cache)
        self.pixel_ranges: PixelRanges | None = None

    @staticmethod
    def configure_pre_processor(
        image_size: tuple[int, int] | None = None,
        backbone: str | None = "wide_resnet50_2",
        tiles: tuple[int, int] = (1, 1),
    ) -> PreProcessor:
        """Build the default pre-processor: resize, then normalise as the backbone was trained.

        Args:
            image_size: Height and width in pixels; (256, 256) if not given.
            backbone: Name of a timm model, whose mean and standard deviation are used; None leaves images in [0, 1].
            tiles: Rows and columns of tiles of that size that images will be cut into.

        Returns:
            The pre-processor.
        """
        size = Tiling(tiles).image_size(image_size or (256, 256))
        return default_pre_processor(size, None if backbone is None else normalization(backbone))

    @classmethod
    def configure_visualizer(cls) -> CCLVisualizer:
        """Build the default visualizer, which writes one picture for each image."""
        return CCLVisualizer()

    def configure_callbacks(self) -> list[Callback]:
        """Add to anomalib's the report, the seed of each epoch, the news of the training and the calibration.

        It is Lightning's first call in every run, before other callbacks are set up, so it refuses what is not for CCL.
        """
        check_trainer(self.trainer, self.dtype)  # type: ignore[arg-type]  # Lightning's alias of torch.dtype
        anomalibs = super().configure_callbacks()
        own: list[Callback] = [EpochSeed(), Completion(), TrainingNews()]
        if self.feature_cache is not None:
            own.append(self.feature_cache)
        # The report before the post-processor, which cuts scores off, takes the place of the one that guests get.
        return [Report(always=True), *anomalibs, *own]  # type: ignore[misc]

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their indices."""
        return self.classes.names

    @property
    def learning_type(self) -> LearningType:
        """One-class learning: only normal images are trained on."""
        return LearningType.ONE_CLASS

    def on_train_start(self) -> None:
        """Find the class of each training image, say so where there is only one, and prepare the second view."""
        loader: Any = self.trainer.train_dataloader
        self.pixel_ranges = next((d.ranges for d in datasets_of(loader.dataset) if hasattr(d, "ranges")), None)
        encode, projected = self.model.network.encode, len(self.model.projections)
        self.classes.find(
            self, self.pre_processor, lambda images: encode(self.model.tiling.cut(images)[0])[1][:projected]
        )
        if len(self.classes.names) == 1 and self.loss.contrastive and self.model.reconstructs:
            logger.warning(
                "All training images are of one class, so the contrastive losses are zero and CCL trains as plain "
                "reverse distillation. For several products use MultiCategory, class_labels='folder', or 'pseudo' with "
                "their number as n_pseudo_classes.",
            )
        self._second_view = second_view_for(self.pre_processor, self.model.network.recipe.view).to(self.device)

    def training_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:  # noqa: ANN401
        """Compute the total loss of a batch of normal images under the key ``loss``; log it and its unweighted terms.

        On several processes, the global loss compares the images and views of all of them; the local loss, for which
        whole feature maps would have to be sent, contrasts images of one process.
        """
        del args, kwargs
        if not self.model.reconstructs:
            return {"loss": torch.zeros((), device=self.device, requires_grad=True)}
        labels = self.classes.labels(batch.image_path).to(self.device)  # type: ignore[arg-type]
        images, names = self.model.tiling.draw(batch.image, batch.image_path)  # type: ignore[arg-type]
        view = self._second_view(images) if self.loss.needs_view else None
        encoded = None if self.feature_cache is None else self.encode(images, names)
        output = self.model.training_pass(images, view, encoded, self.loss.compares_views)

        reconstruction = self.model.network.reconstruction_loss(output.targets, output.reconstructed, self.progress)
        loss, terms = self.loss(reconstruction, output, labels, self.gathered)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(labels))
        losses = {f"train_loss_{name}": term for name, term in terms.items()}
        self.log_dict(losses, on_step=True, on_epoch=True, batch_size=len(labels))
        return {"loss": loss}

    def encode(self, images: Tensor, names: Sequence[str]) -> Encoded:
        """Give targets and inputs of training images, or tiles of them, from the feature cache where there is one.

        Args:
            images: Pre-processed images of shape ``(B, 3, H, W)``.
            names: What each is known by.

        Returns:
            The maps to reconstruct and those to project.
        """
        encode = self.model.network.encode
        return encode(images) if self.feature_cache is None else self.feature_cache.features(images, names, encode)

    def forward(self, batch: Tensor, product: Tensor | None = None) -> Prediction:  # type: ignore[override]
        """Predict as an exported model does: pre-process, score, and compare with the limits.

        Args:
            batch: Images of shape ``(B, 3, H, W)``, in [0, 1].
            product: Class of each image where it is known, of shape ``(B,)``; below 0 the class is recognised.

        Returns:
            The prediction.
        """
        prediction = self.model(batch if self.pre_processor is None else self.pre_processor(batch), product)
        return (
            prediction
            if self.post_processor is None
            else prediction._replace(**self.post_processor(prediction)._asdict())
        )
