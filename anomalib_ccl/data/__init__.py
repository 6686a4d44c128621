"""Data: several categories in one datamodule, and a sample data set to try it on.

The public names are loaded when they are first used, so that what needs one part of this package works without the
others.
"""

import importlib
from typing import TYPE_CHECKING

# anomalib's own data come first: importing them runs the plug-in's import hook, which imports modules of this
# package and must not find them half imported.
import anomalib.data  # noqa: F401

if TYPE_CHECKING:
    from anomalib_ccl.data.dataset import MultiCategoryDataset
    from anomalib_ccl.data.manta import MANTA, MANTADataset
    from anomalib_ccl.data.multi_category import MultiCategory
    from anomalib_ccl.data.sample import make_sample_dataset
    from anomalib_ccl.data.sampler import CategorySampler

__all__ = ["MANTA", "CategorySampler", "MANTADataset", "MultiCategory", "MultiCategoryDataset", "make_sample_dataset"]

_HOMES = {
    "MANTA": "manta",
    "MANTADataset": "manta",
    "CategorySampler": "sampler",
    "MultiCategory": "multi_category",
    "MultiCategoryDataset": "dataset",
    "make_sample_dataset": "sample",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
