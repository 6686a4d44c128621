"""Pre- and post-processor of a model that loads a checkpoint."""

from typing import Any

from anomalib.pre_processing import PreProcessor
from anomalib.pre_processing.utils.spec import spec_to_transform

from anomalib_ccl.export.architecture import refuse

COMPONENTS = ("pre_processor", "post_processor", "evaluator", "visualizer")
_PRE_PROCESSOR = "anomalib_pre_processor_config"
_POST_PROCESSOR = "anomalib_post_processor_config"


def prepare_components(model: Any, checkpoint: dict[str, Any], source: str) -> None:  # noqa: ANN401
    """Have anomalib restore what a checkpoint knows of components, and leave alone those that the user gave.

    A component that the model has by default, but that the checkpoint was trained without, is among the trainer's
    callbacks already when a checkpoint is loaded; it is made to do nothing.

    Args:
        model: The model that loads it.
        checkpoint: What was saved; changed in place.
        source: What the checkpoint is called in messages.

    Raises:
        ValueError: If the user gave another pre-processor than the checkpoint was trained with.
    """
    enabled = checkpoint.get("anomalib_components_enabled", {})
    if "pre_processor" in model.given:
        _compare(model.pre_processor, checkpoint, source)
    elif model.pre_processor is not None and not enabled.get("pre_processor", True):
        model.pre_processor.load_checkpoint_config({"transform": None})

    if "post_processor" in model.given:
        checkpoint.pop(_POST_PROCESSOR, None)
    elif model.post_processor is not None and not enabled.get("post_processor", True):
        model.post_processor.enable_normalization = model.post_processor.enable_thresholding = False
    if model.post_processor is None:
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: weights[name] for name in weights if not name.startswith("post_processor.")}

    kept = dict.fromkeys((name for name in COMPONENTS if name in model.given), True)
    checkpoint["anomalib_components_enabled"] = {**enabled, **kept}


def _compare(pre_processor: Any, checkpoint: dict[str, Any], source: str) -> None:  # noqa: ANN401
    """Refuse a pre-processor with other transforms than a checkpoint knows of."""
    config = checkpoint.pop(_PRE_PROCESSOR, {})
    trained = config.get("transform")
    # A checkpoint does not know transforms that anomalib cannot save, such as random ones.
    is_known = trained is not None or not checkpoint.get("anomalib_components_enabled", {}).get("pre_processor", True)
    asked = pre_processor.checkpoint_config()["transform"] if isinstance(pre_processor, PreProcessor) else None
    if is_known and asked != trained and (pre_processor is None or asked is not None):
        refuse(f"pre_processor={_text(asked)}", f"pre_processor={_text(trained)}", source)


def _text(spec: Any) -> str:  # noqa: ANN401
    return "False" if spec is None else " ".join(repr(spec_to_transform(spec)).split())
