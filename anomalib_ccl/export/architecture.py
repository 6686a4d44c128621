"""Which arguments of a model its checkpoints know, so that nobody need give them again."""

from collections.abc import Mapping, Sequence
from typing import Any

# Where one of these was not given, it is the checkpoint's; without a checkpoint, the reconstruction network's. What
# stands here is what early versions had, whose checkpoints do not tell all of them.
#
# - ``reconstruction`` with its arguments, ``backbone`` and ``projection`` are the layers. Two projections can have
#   layers of the same names and shapes; then the weights of one load into the other without a word, and every score is
#   wrong.
# - ``image_size`` and ``tiles``: of another size the features are others, so the limits and thresholds do not fit.
# - ``skip``, ``anomaly_map`` and ``subtract_usual`` have no weights, so any weights fit, and scores would be wrong.
# - ``noise_probability`` belongs to the network, but acts in training steps alone.
# - ``recipe`` gives the defaults of some of them.
ARCHITECTURE: dict[str, Any] = {
    "recipe": "paper",
    "reconstruction": "reverse_distillation",
    "reconstruction_args": {},
    "backbone": "wide_resnet50_2",
    "image_size": (256, 256),
    "tiles": (1, 1),
    "projection": "standard",
    "skip": False,
    "noise_probability": 0.309,
    "anomaly_map": "paper",
    "subtract_usual": False,
}

# What a user gives of these must be what the checkpoint was trained with; ``calibrate``, because thresholds were set on
# the scores that it made. Everything else may differ. ``pre_trained`` and ``backbone_weights`` say where a new training
# gets the teacher's weights, which a checkpoint holds. ``local_weight``, ``global_weight``, ``temperature``,
# ``num_negatives``, ``losses``, ``match_on``, ``match_window``, ``schedule``, ``torch_compile``,
# ``class_labels``, ``n_pseudo_classes`` and ``feature_cache`` are about how a network is trained, not about what it
# computes.
# ``false_alarm_rate`` and the post-processor set thresholds, evaluator and visualizer look on.
_FIXED = (*(name for name in ARCHITECTURE if name != "noise_probability"), "calibrate")


def plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments that a checkpoint may know as plain data, and leave out those that were not given.

    Args:
        arguments: Arguments of a model by name, None for those that were not given.

    Returns:
        Those that were given; image size and tiles are tuples, whatever sequences a config gave.

    Example:
        >>> plain({"backbone": None, "image_size": [64, 64], "temperature": 0.1})
        {'image_size': (64, 64)}
    """
    known = {name: arguments.get(name) for name in (*ARCHITECTURE, "calibrate")}
    kept = {name: value for name, value in known.items() if value is not None}
    if "reconstruction_args" in kept:
        kept["reconstruction_args"] = dict(kept["reconstruction_args"])
    if "image_size" in kept:
        kept["image_size"] = tuple(int(length) for length in kept["image_size"])
    if isinstance(kept.get("tiles"), Sequence):
        kept["tiles"] = tuple(kept["tiles"])
    return kept


def architecture_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Find the architecture that a checkpoint was trained with.

    Args:
        saved: Its hyper-parameters. Earlier versions had fewer; what they did then is what the default does now.

    Returns:
        The values of all arguments in :data:`ARCHITECTURE`, and of ``calibrate``.
    """
    architecture = {**ARCHITECTURE, "calibrate": True, **plain(saved)}
    if "reconstruction" in saved:  # a network may have no backbone
        architecture["backbone"] = saved["backbone"]
    return architecture


def refuse_contradictions(arguments: Mapping[str, Any], saved: Mapping[str, Any], source: str) -> None:
    """Refuse arguments that make another model of a checkpoint's weights.

    Args:
        arguments: Arguments that a user gave, by name.
        saved: The hyper-parameters of the checkpoint.
        source: What the checkpoint is called in the message.

    Raises:
        ValueError: If some of them are not those that the checkpoint was trained with.

    Example:
        >>> refuse_contradictions({"projection": "residual"}, {"projection": "standard"}, "model.ckpt")
        Traceback (most recent call last):
        ...
        ValueError: model.ckpt was trained with projection='standard', not projection='residual'; leave ...
    """
    trained = architecture_of(saved)
    asked = plain(arguments)
    wrong = [name for name in _FIXED if name in asked and asked[name] != trained[name]]
    if wrong:
        refuse(_listed(asked, wrong), _listed(trained, wrong), source)
    if arguments.get("false_alarm_rate") is not None and not trained["calibrate"]:
        refuse(f"false_alarm_rate={arguments['false_alarm_rate']}", "calibrate=False", source)


def refuse(asked: str, trained: str, source: str) -> None:
    """Refuse what contradicts a checkpoint.

    Args:
        asked: What the user gave.
        trained: What the checkpoint was trained with.
        source: What the checkpoint is called in the message.

    Raises:
        ValueError: Always.
    """
    msg = f"{source} was trained with {trained}, not {asked}; leave that away, or give another checkpoint"
    raise ValueError(msg)


def _listed(values: Mapping[str, Any], names: list[str]) -> str:
    return " and ".join(f"{name}={values[name]!r}" for name in names)
