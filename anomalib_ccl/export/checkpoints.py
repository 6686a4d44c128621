"""What a checkpoint holds beside the weights, and how a model takes it back."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.data import AnomalibDataModule
from anomalib.models.components import AnomalibModule
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import Self

from anomalib_ccl.classes.training_classes import TrainingClasses
from anomalib_ccl.data.prediction import ranges_of
from anomalib_ccl.data.ranges import PixelRanges
from anomalib_ccl.export.architecture import ARCHITECTURE, architecture_of, plain, refuse_contradictions
from anomalib_ccl.export.components import COMPONENTS, prepare_components
from anomalib_ccl.training.callers import caller
from anomalib_ccl.training.completion import Completion
from anomalib_ccl.training.further import is_test_after_training, start_from_weights
from anomalib_ccl.training.options import Options, options

if TYPE_CHECKING:
    # Not a base class: anomalib lists the direct subclasses of its own as models.
    Base = AnomalibModule
else:
    Base = object


class Checkpoints(Base):
    """Saves the classes and the false-alarm rate with a model, and makes a model that of the checkpoint that it loads.

    Attributes:
        given: The arguments that the user gave, of those that a checkpoint could contradict.
    """

    model: Any  # with a ``network``, ``projections`` and a ``calibration``
    loss: Any  # with a ``local_weight`` and a ``global_weight``
    schedule: Any
    classes: TrainingClasses
    pixel_ranges: PixelRanges | None
    given: dict[str, Any]

    @staticmethod
    def given_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Find the arguments that were given, of those that a checkpoint could contradict.

        Args:
            arguments: All arguments of a model; None, or True for a component, where they were not given.

        Returns:
            The others, for :attr:`given`.

        Raises:
            ValueError: If they contradict each other.
        """
        components = {name: arguments[name] for name in COMPONENTS if arguments[name] is not True}
        rate = arguments["false_alarm_rate"]
        if rate is not None and arguments["calibrate"] is False:
            msg = f"false_alarm_rate={rate} needs calibrate=True, which finds the limit of each class"
            raise ValueError(msg)
        others = {name: arguments[name] for name in ("false_alarm_rate", "temperature", *Options._fields)}
        exported = {name: True for name in ("class_output", "product_input") if arguments[name]}
        return {**plain(arguments), **{n: v for n, v in others.items() if v is not None}, **components, **exported}

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **kwargs: Any) -> Self:  # type: ignore[override]  # noqa: ANN401
        """Load a trained model; see anomalib's ``AnomalibModule.load_from_checkpoint``.

        Args:
            checkpoint_path: Path to the checkpoint.
            **kwargs: Passed to anomalib.

        Returns:
            The model.

        Raises:
            FileNotFoundError: If there is no such file.
            OSError: If it cannot be read.
            ValueError: If it is not a checkpoint of this model, or arguments contradict it.
        """
        from anomalib_ccl.export.checkpoint_file import CheckpointFiles  # noqa: PLC0415  # anomalib.engine is heavy

        checkpoint = CheckpointFiles(cls.checkpoint_safe_globals()).load_checkpoint(
            checkpoint_path, weights_only=kwargs.get("weights_only", True)
        )
        check_model(checkpoint, checkpoint_path)
        kwargs = {**_given_to_export(), **kwargs}
        kwargs = {name: value for name, value in kwargs.items() if name not in ARCHITECTURE or value is not None}
        # Here, because Lightning puts them in the place of what the checkpoint holds.
        refuse_contradictions(kwargs, checkpoint.get("hyper_parameters", {}), str(checkpoint_path))
        return super().load_from_checkpoint(checkpoint_path, **kwargs)  # type: ignore[return-value]

    def setup(self, stage: str) -> None:
        """Have the trainer name a checkpoint that it cannot read.

        Args:
            stage: What the trainer is about to do.
        """
        from anomalib.engine.plugins import AnomalibCheckpointIO  # noqa: PLC0415  # heavy

        from anomalib_ccl.export.checkpoint_file import CheckpointFiles  # noqa: PLC0415

        super().setup(stage)
        files = self.trainer.strategy.checkpoint_io
        if type(files) is AnomalibCheckpointIO:
            self.trainer.strategy.checkpoint_io = CheckpointFiles(files.extra_safe_globals)

    def on_fit_start(self) -> None:
        """Load the teacher's weights if no checkpoint has brought them along, before there is anything to lose."""
        super().on_fit_start()
        if self.model.network.teacher is not None:
            self.model.network.teacher.load_awaited()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the classes too.

        Args:
            checkpoint: What will be saved.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            (completion,) = (callback for callback in self.trainer.callbacks if isinstance(callback, Completion))  # type: ignore[attr-defined]
            completion.complete_checkpoint(self.trainer, self, checkpoint)
        super().on_save_checkpoint(checkpoint)
        checkpoint["training_classes"] = self.classes.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Become the model that a checkpoint is of, and take its classes, ranges and, where none was given, its rate.

        Args:
            checkpoint: What was saved.

        Raises:
            ValueError: If it is not a checkpoint of this model, or arguments that were given contradict it.
        """
        if is_test_after_training():
            # Nor are the callbacks to forget the checkpoints that they have written.
            checkpoint.update(state_dict=self.state_dict(), callbacks={})
            return
        trainer = self._trainer
        source = str(trainer.ckpt_path) if trainer is not None and trainer.ckpt_path else "the checkpoint"
        check_model(checkpoint, source)
        saved = checkpoint.setdefault("hyper_parameters", {})
        refuse_contradictions(self.given, saved, source)
        trained = architecture_of(saved)
        self._take_architecture(trained)
        # For a training that goes on, whose recipe is the checkpoint's where none was given.
        chosen = options(trained["recipe"], self.given)
        self.loss.local_weight, self.loss.global_weight = chosen.local_weight, chosen.global_weight
        self.schedule = chosen.schedule
        prepare_components(self, checkpoint, source)
        super().on_load_checkpoint(checkpoint)
        if trainer is not None and isinstance(trainer.datamodule, AnomalibDataModule):  # type: ignore[attr-defined]
            # It was set up before, to resize images as this model did then: large ones would lose their detail.
            trainer.datamodule._update_augmentations()  # type: ignore[attr-defined]
        rate = saved.get("false_alarm_rate")
        if rate is not None and self.hparams["false_alarm_rate"] is None:
            self.model.calibration.false_alarm_rate = rate
        if "training_classes" in checkpoint:
            self.classes.load_state_dict(checkpoint["training_classes"])
        self.pixel_ranges = ranges_of(checkpoint)
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING and self.classes.changed(trainer):
            start_from_weights(checkpoint, trainer)

    def _take_architecture(self, trained: dict[str, Any]) -> None:
        """Build the network anew where that of a checkpoint is another."""
        wanted = {name: self.given.get(name, trained[name]) for name in ARCHITECTURE}
        if wanted == {name: self.hparams[name] for name in ARCHITECTURE}:
            return
        self.save_hyperparameters(wanted)
        size, _ = wanted.pop("image_size"), wanted.pop("recipe")
        built = type(self.model)(pre_trained=False, **wanted).train(self.model.training)
        # Part by part, because callbacks hold the model.
        for part in ("network", "projections", "skip", "noise_probability", "anomaly_map", "tiling"):
            setattr(self.model, part, getattr(built, part))
        self.model.calibration.subtract_usual = wanted["subtract_usual"]
        if self.pre_processor is not None and "pre_processor" not in self.given:
            default: Any = self.configure_pre_processor(size, wanted["backbone"], wanted["tiles"])  # type: ignore[call-arg]
            self.pre_processor.load_checkpoint_config(default.checkpoint_config())  # type: ignore[operator]


def check_model(checkpoint: dict[str, Any], source: str | Path) -> None:
    """Refuse the checkpoint of another model.

    Args:
        checkpoint: What was saved.
        source: What the checkpoint is called in the message.

    Raises:
        ValueError: If it is one.
    """
    if not any(name.startswith("model.network.") for name in checkpoint["state_dict"]):
        msg = f"{source} is the checkpoint of another model than CCL; load it with the model that it was trained with"
        raise ValueError(msg)


def _given_to_export() -> dict[str, Any]:
    """Find what was given to the model that ``Engine.export`` was called with, if that is who loads a checkpoint.

    anomalib loads another model of the same class for the export, without any arguments.
    """
    exporting = caller("Engine", "export")
    return {} if exporting is None else exporting["model"].given
