"""How a model is made and trained: recipes by name, and what a researcher sets in their place."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from anomalib_ccl.errors import InputError
from anomalib_ccl.model.projection import Projection
from anomalib_ccl.model.reconstruction.choice import network_class
from anomalib_ccl.model.reconstruction.recipe import Schedule, check_schedule
from anomalib_ccl.model.torch_model import AnomalyMap, CCLModel
from anomalib_ccl.model.total_loss import Losses, TotalLoss
from anomalib_ccl.names import check_choice, nearest

RecipeName = Literal["paper", "recommended", "memory"]


@dataclass
class Research:
    """What only a researcher sets; what is not given is the recipe's, or the reconstruction network's.

    Attributes:
        projection: Layers between teacher and bottleneck: "standard", the paper's; "light", depthwise-separable; or
            "none", plain reverse distillation.
        skip: Whether a skip connection adds the features to their projections.
        noise_probability: Probability of noise on the projected features, per step.
        anomaly_map: "paper", the network's own, or "refined"; see :mod:`anomalib_ccl.model.refined_map`.
        local_weight: Weight of the local contrastive loss; 0 switches it off.
        global_weight: Weight of the global contrastive loss; 0 switches it off.
        temperature: Temperature of both contrastive losses, greater than 0.
        losses: Forms of the contrastive losses: "paper"; "released", what the authors' released code computes; or
            "single_view", without second views.
        schedule: How the learning rates fall: "step", to a tenth at 80 % of the training, or "cosine", to 0.
        reconstruction_args: Further arguments of the reconstruction network, by name.
    """

    projection: Projection | None = None
    skip: bool | None = None
    noise_probability: float | None = None
    anomaly_map: AnomalyMap | None = None
    local_weight: float | None = None
    global_weight: float | None = None
    temperature: float | None = None
    losses: Losses | None = None
    schedule: Schedule | None = None
    reconstruction_args: dict[str, Any] | None = None


_KINDS: dict[Any, tuple[Any, str]] = {
    float | None: (int | float, "a number"),
    bool | None: (bool, "true or false"),
    dict[str, Any] | None: (Mapping, "arguments by their names"),
}
_PAPER = Research(projection="standard", skip=False, anomaly_map="paper", local_weight=1.0, global_weight=1.0)
_RECOMMENDED = replace(
    _PAPER, skip=True, anomaly_map="refined", global_weight=0.1, losses="single_view", schedule="cosine"
)
_RECIPES: dict[str, tuple[Research, int]] = {
    "paper": (_PAPER, 0),
    "recommended": (_RECOMMENDED, 500),
    "memory": (replace(_PAPER, local_weight=0.0, global_weight=0.0), 500),
}


def given_research(research: "Research | Mapping[str, Any] | None") -> dict[str, Any]:
    """Give what a researcher has set, as plain data.

    Example:
        >>> given_research({"local_weigth": 0})
        Traceback (most recent call last):
        ...
        anomalib_ccl.errors.InputError: research has no setting 'local_weigth'; did you mean 'local_weight'?
    """
    if not isinstance(research, Research | Mapping | None):
        msg = f"research must be settings by their names, such as {{'local_weight': 0}}, got {research!r}"
        raise InputError(msg)
    values = asdict(research) if isinstance(research, Research) else dict(research or {})
    names = {field.name: field.type for field in fields(Research)}
    for name, value in values.items():
        if name not in names:
            near = nearest(name, names)
            msg = f"research has no setting {name!r}; " + (f"did you mean {near!r}?" if near else f"it has {[*names]}")
            raise InputError(msg)
        kind, words = _KINDS.get(names[name], (object, ""))
        if value is not None and not isinstance(value, kind):
            msg = f"research.{name} must be {words}, got {value!r}"
            raise InputError(msg)
    return {name: value for name, value in values.items() if value is not None}


def chosen(recipe: str, given: Mapping[str, Any]) -> tuple[Research, int]:
    """Find the settings of a recipe.

    Example:
        >>> settings, memory = chosen("recommended", {"global_weight": 0.5})
        >>> settings.global_weight, settings.skip, memory
        (0.5, True, 500)
    """
    check_choice("recipe", recipe, get_args(RecipeName))
    settings, memory = _RECIPES[recipe]
    settings = replace(settings, **given)
    check_schedule(settings.schedule)
    return settings, memory


def architecture(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings that change what a network computes, as they take effect; the others are about its training."""
    settings, _ = chosen(values["recipe"], values["research"])
    names = ("projection", "skip", "noise_probability", "anomaly_map", "reconstruction_args")
    found = {name: getattr(settings, name) for name in names}
    if found["noise_probability"] is None:
        found["noise_probability"] = network_class(values["reconstruction"]).recipe.noise_probability
    return found


def network_of(values: Mapping[str, Any]) -> CCLModel:
    """Build the network of a model's arguments or of a checkpoint's hyper-parameters."""
    settings, _ = chosen(values["recipe"], values["research"])
    return CCLModel(
        values["backbone"],
        pre_trained=False,
        projection=settings.projection or "standard",
        skip=bool(settings.skip),
        noise_probability=settings.noise_probability,
        anomaly_map=settings.anomaly_map or "paper",
        memory=values["memory"],
        reconstructs=values["recipe"] != "memory",
        false_alarm_rate=values["false_alarm_rate"],
        reconstruction=values["reconstruction"],
        reconstruction_args=settings.reconstruction_args,
        tiles=values["tiles"],
    )


def loss_of(settings: Research, network: CCLModel) -> TotalLoss:
    """Build the loss."""
    temperature = network.network.recipe.temperature if settings.temperature is None else settings.temperature
    weights = settings.local_weight, settings.global_weight
    return TotalLoss(*weights, temperature, settings.losses or "paper")  # type: ignore[arg-type]
