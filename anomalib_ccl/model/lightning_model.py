"""CCL as an anomalib model (Fan et al., https://arxiv.org/abs/2412.04769)."""

import logging
from pathlib import Path
from typing import Any

import torch
from anomalib.data import ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT

from anomalib_ccl.classes.clustering import ClassCount
from anomalib_ccl.classes.labels import ClassLabels
from anomalib_ccl.classes.training_classes import TrainingClasses
from anomalib_ccl.export.checkpoints import Checkpoints
from anomalib_ccl.export.class_export import ClassExport
from anomalib_ccl.export.pre_processor import default_pre_processor
from anomalib_ccl.model.local_loss import MatchOn
from anomalib_ccl.model.projection import Projection
from anomalib_ccl.model.reconstruction.choice import check_image_size, default_backbone, default_image_size
from anomalib_ccl.model.reconstruction.frozen_backbone import normalization
from anomalib_ccl.model.tiling import Tiling
from anomalib_ccl.model.torch_model import AnomalyMap, CCLModel
from anomalib_ccl.model.total_loss import Losses, TotalLoss
from anomalib_ccl.training.completion import Completion
from anomalib_ccl.training.epoch_seed import EpochSeed
from anomalib_ccl.training.feature_cache import FeatureCache
from anomalib_ccl.training.gather import gathered
from anomalib_ccl.training.options import RecipeName, options
from anomalib_ccl.training.post_processor import LimitPostProcessor
from anomalib_ccl.training.recipe import FollowsRecipe
from anomalib_ccl.training.schedules import Schedule, check_schedule
from anomalib_ccl.training.views import second_view_for

logger = logging.getLogger(__name__)


class CCL(FollowsRecipe, Checkpoints, ClassExport, AnomalibModule):
    """One anomaly detection model for many product categories: class-aware contrastive learning.

    A reconstruction network whose projected features are shaped by two contrastive losses. They use the category of
    each normal training image, so that the model does not reconstruct one product as another. A checkpoint knows its
    architecture: an argument that is given and contradicts it is refused when it is loaded.

    Args:
        backbone: Name of a convolutional timm model for the teacher; the checkpoint's, else wide_resnet50_2. Networks
            other than reverse distillation take others: "vit" and "dinomaly" plain vision transformers.
        pre_trained: Whether the teacher uses timm's pre-trained weights, where no checkpoint brings them along.
        backbone_weights: A .safetensors or .pth file with the teacher's weights instead.
        image_size: Height and width that images are resized to, in pixels, multiples of the network's stride (of 32 for
            reverse distillation); the checkpoint's, else the network's. A pre-processor of your own takes precedence.
        tiles: Rows and columns of tiles that large images are cut into, each of image_size and overlapping the next by
            a quarter: [2, 3] of 256 pixels cover 448 × 640; the checkpoint's, else one. A step trains on one of each.
        recipe: Options that belong together: "paper", the default, is the paper's method; "recommended" finds more
            defects on real products: it sets skip, anomaly_map="refined", subtract_usual, global_weight=0.1 and
            schedule="cosine". Each can still be given.
        projection: Layers between teacher and bottleneck; the checkpoint's, else "standard", the paper's. "light" is
            depthwise-separable, "none" plain reverse distillation.
        skip: Whether the bottleneck gets the features too, added to their projections; the checkpoint's, else not.
        noise_probability: Probability of noise on the projected features, per step; the checkpoint's, else the
            network's, which is 0.309 for reverse distillation.
        anomaly_map: "paper", the network's own, or "refined", which weights the scales' distances, adds one of
            surroundings and smooths in proportion to the image; the checkpoint's, else "paper".
        subtract_usual: Whether calibration learns what is usual in the map of each class, which is then taken off it;
            the checkpoint's, else not.
        local_weight: Weight of the local contrastive loss; 0 switches it off.
        global_weight: Weight of the global contrastive loss; 0 switches it off.
        temperature: Temperature of both contrastive losses, greater than 0. By default the network's, which is
            0.05 but for "vit", which has 0.1.
        num_negatives: Images of other classes that each image is contrasted with in the local loss.
        losses: Forms of the contrastive losses: "paper" (the global one compares images and their second views; the
            local one has a match in the view and one in another image of the class), or "released", what the authors'
            released code computes, for comparison only.
        match_on: Whose similarity finds the local loss's matches: that of the "teacher"'s features (released code), or
            of the "projected" ones (the paper's supplement).
        match_window: Side of the square of positions in which matches are looked for, an odd number, as on the paper's
            project page, which tells no size; without it the whole map, as in the released code.
        schedule: How the learning rates fall: "step", the authors' configuration, to a tenth at 80 % of the training
            (a fault in their code keeps them constant); "cosine" is half a cosine, to 0; or as the network has it.
        torch_compile: Whether ``torch.compile`` compiles the training pass. On a processor it was no faster.
        class_labels: Where the class of a training image comes from: "category" (the datamodule tells it),
            "folder" (the first folder in which the image paths differ), "pseudo" (clusters of the teacher's
            features, found before the first epoch), or "auto" (the category where the datamodule tells it, else
            pseudo).
        n_pseudo_classes: Number of pseudo-classes, at most that of the training images, or "auto": 1 to 50, by
            the silhouette of the clusters.
        calibrate: Whether the model, when it is trained, learns to recognise each class and divides maps and scores
            by the limit of the class, so that one threshold fits all; it does unless this is False.
        false_alarm_rate: Share of normal images of each class that may be called anomalous, in (0, 0.5]; sets the
            threshold from the normal training images alone. Without it, anomalib's adaptive threshold is used, or the
            rate that a checkpoint was trained with; another one needs no new training.
        feature_cache: Folder in which a training keeps the teacher's features of the training images, so that from the
            second epoch on the teacher runs on the second views only. It takes 0.25 MiB of disk for each image with
            tf_efficientnet_lite0 (160 × 160 pixels), 7 MiB with wide_resnet50_2 (256 × 256 pixels).
        reconstruction: The reconstruction network: "reverse_distillation", "vit" (ViTAD), "dinomaly", or the path of a
            class derived from anomalib_ccl.model.reconstruction.ReconstructionNetwork; the checkpoint's, or the first.
        reconstruction_args: Further arguments of that network, by name; the checkpoint's, else none.
        class_output: Whether ONNX and OpenVINO exports have the outputs ``class_index`` and ``raw_score`` too.
        product_input: Whether they have the input ``product``, the class by whose limit to score; -1: that recognised.
        pre_processor: Pre-processor instance, or whether to use the default: resize, then normalise with the
            backbone's own mean and standard deviation.
        post_processor: Post-processor instance, or whether to use the default: anomalib's, or with false_alarm_rate
            one whose threshold is the limit of the class.
        evaluator: Evaluator instance, or whether to use anomalib's default.
        visualizer: Visualizer instance, or whether to use anomalib's default.

    Raises:
        ValueError: If an argument is out of its range, or the backbone is unknown or not one for the network.

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
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        image_size: tuple[int, int] | None = None,
        tiles: tuple[int, int] | None = None,
        recipe: RecipeName | None = None,
        projection: Projection | None = None,
        skip: bool | None = None,
        noise_probability: float | None = None,
        anomaly_map: AnomalyMap | None = None,
        subtract_usual: bool | None = None,
        local_weight: float | None = None,
        global_weight: float | None = None,
        temperature: float | None = None,
        num_negatives: int = 1,
        losses: Losses = "paper",
        match_on: MatchOn = "teacher",
        match_window: int | None = None,
        schedule: Schedule | None = None,
        torch_compile: bool = False,
        class_labels: ClassLabels = "auto",
        n_pseudo_classes: ClassCount = "auto",
        calibrate: bool | None = None,
        false_alarm_rate: float | None = None,
        feature_cache: str | Path | None = None,
        reconstruction: str | None = None,
        reconstruction_args: dict[str, Any] | None = None,
        class_output: bool = False,
        product_input: bool = False,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        given = self.given_arguments(locals())
        # Resolved here, as plain data, whatever a config gave: hyper-parameters are saved in the checkpoint.
        recipe = recipe or "paper"
        chosen: Any = options(recipe, locals())
        projection, skip, anomaly_map, subtract_usual, local_weight, global_weight, schedule = chosen
        check_schedule(chosen.schedule)
        reconstruction = reconstruction or "reverse_distillation"
        reconstruction_args = given.get("reconstruction_args", {})
        backbone = backbone or default_backbone(reconstruction)
        calibrate, tiles = calibrate is not False, given.get("tiles", (1, 1))
        model = CCLModel(
            backbone,
            pre_trained=False,
            projection=chosen.projection,
            skip=chosen.skip,
            noise_probability=noise_probability,
            anomaly_map=chosen.anomaly_map,
            subtract_usual=chosen.subtract_usual,
            false_alarm_rate=0.05 if false_alarm_rate is None else false_alarm_rate,
            reconstruction=reconstruction,
            reconstruction_args=reconstruction_args,
            tiles=tiles,
        )
        noise_probability = model.noise_probability
        temperature = model.network.recipe.temperature if temperature is None else temperature
        image_size = given.get("image_size", default_image_size(model.network))
        if post_processor is True and false_alarm_rate is not None:
            post_processor = LimitPostProcessor()
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(image_size, backbone, tiles)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self.given, self.model = given, model
        if pre_trained or backbone_weights is not None:
            self.model.network.load_when_needed(backbone_weights)
        check_image_size(self.input_size, self.model.network.stride, self.model.tiling)
        weights = chosen.local_weight, chosen.global_weight
        self.loss = TotalLoss(*weights, temperature, num_negatives, losses, match_on, match_window)
        self.schedule, self.torch_compile = chosen.schedule, torch_compile
        self._compiled: Any = None
        self.classes = TrainingClasses(class_labels, n_pseudo_classes)
        self.calibrate, self.class_output, self.product_input = calibrate, class_output, product_input
        self.feature_cache = None if feature_cache is None else FeatureCache(feature_cache)

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

    def on_train_start(self) -> None:
        """Find the class of each training image, say so where there is only one, and prepare the second view."""
        self.classes.find(self)
        if len(self.classes.names) == 1 and self.loss.contrastive:
            logger.warning(
                "All training images are of one class, so the contrastive losses are zero and CCL trains as plain "
                "reverse distillation. For several products use MultiCategory, class_labels='folder', or 'pseudo' with "
                "their number as n_pseudo_classes.",
            )
        if "temperature" not in self.given:  # a checkpoint may have brought another network
            self.loss.temperature = self.model.network.recipe.temperature
        self._second_view = second_view_for(self.pre_processor).to(self.device)
        if self.torch_compile:
            # The method, because a compiled module's weights would have other names in checkpoints.
            self._compiled = torch.compile(self.model.forward)

    def on_train_end(self) -> None:
        """Drop the compiled training pass, with which the model could not be saved."""
        self._compiled = None

    def training_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:  # noqa: ANN401
        """Compute the total loss of a batch of normal images under the key ``loss``; log it and its unweighted terms.

        On several processes, the global loss compares the images and views of all of them; the local loss, for which
        whole feature maps would have to be sent, contrasts images of one process.
        """
        del args, kwargs
        labels = self.classes.labels(batch).to(self.device)
        images, names = self.model.tiling.draw(batch.image, batch.image_path)  # type: ignore[arg-type]
        view = self._second_view(images) if self.loss.needs_view else None
        cache = self.feature_cache
        encoded = None if cache is None else cache.features(images, names, self.model.network.encode)
        output = (self._compiled or self.model)(images, view, encoded, self.loss.compares_views)

        reconstruction = self.model.network.reconstruction_loss(output.targets, output.reconstructed, self.progress)
        loss, terms = self.loss(reconstruction, output, labels, gathered)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(labels))
        losses = {f"train_loss_{name}": term for name, term in terms.items()}
        self.log_dict(losses, on_step=True, on_epoch=True, batch_size=len(labels))
        return {"loss": loss}

    def validation_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:  # noqa: ANN401
        """Score a batch of images.

        Returns:
            The batch with its anomaly maps and scores; once calibrated, ``explanation`` names the class of each image,
            ``"unknown"`` where it is none of those trained on.
        """
        del args, kwargs
        prediction = self.model.classify(batch.image)  # type: ignore[arg-type]
        names = [*self.classes.names, "unknown"]
        return batch.update(
            anomaly_map=prediction.anomaly_map,
            pred_score=prediction.score,
            explanation=[names[i] for i in prediction.class_index] if self.model.calibration.is_calibrated else None,
        )

    test_step = predict_step = validation_step  # type: ignore[assignment]

    def configure_callbacks(self) -> list[Callback]:
        """Add the seed of each epoch and the completion of the model to anomalib's."""
        anomalibs: Any = super().configure_callbacks()
        callbacks = [*anomalibs, EpochSeed(), Completion(self.model, self.classes.labels if self.calibrate else None)]
        if self.feature_cache is not None:
            callbacks.append(self.feature_cache)
        return callbacks
