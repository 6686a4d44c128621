"""Class-aware contrastive learning: one anomaly detection model for many products, as an anomalib plugin.

Installing the package is enough for ``anomalib train --model CCL --data MultiCategory``; see
:mod:`anomalib_ccl.registration.registry`. Importing it imports neither torch nor anomalib: its public names are loaded
when they are first used.

Example:
    >>> from anomalib_ccl import CCL, MultiCategory
    >>> CCL.__name__, MultiCategory.__name__
    ('CCL', 'MultiCategory')
"""

from anomalib_ccl.registration import import_hook

# Type checkers take this name as true; `typing` is too dear for the start of an interpreter.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from anomalib_ccl.data import MultiCategory, make_sample_dataset
    from anomalib_ccl.export.inferencer import CCLInferencer
    from anomalib_ccl.lightning_model import CCL
    from anomalib_ccl.model import CCLModel, GlobalContrastiveLoss, LocalContrastiveLoss

    __version__: str

__all__ = [
    "CCL",
    "CCLInferencer",
    "CCLModel",
    "GlobalContrastiveLoss",
    "LocalContrastiveLoss",
    "MultiCategory",
    "__version__",
    "make_sample_dataset",
]

_HOMES = {
    "CCL": "anomalib_ccl.lightning_model",
    "CCLInferencer": "anomalib_ccl.export.inferencer",
    "CCLModel": "anomalib_ccl.model",
    "GlobalContrastiveLoss": "anomalib_ccl.model",
    "LocalContrastiveLoss": "anomalib_ccl.model",
    "MultiCategory": "anomalib_ccl.data",
    "make_sample_dataset": "anomalib_ccl.data",
}


def __getattr__(name: str) -> object:
    import importlib.metadata  # noqa: PLC0415  # not loaded at the start of an interpreter

    if name == "__version__":
        return importlib.metadata.version("anomalib-ccl")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


import_hook.install()
