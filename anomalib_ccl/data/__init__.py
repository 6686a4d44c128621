"""Data: several categories in one datamodule, and a sample data set to try it on."""

# anomalib's own data come first: importing them runs the plug-in's import hook, which imports modules of this
# package and must not find them half imported.
import anomalib.data  # noqa: F401

from anomalib_ccl.data.dataset import MultiCategoryDataset
from anomalib_ccl.data.multi_category import MANTA, MultiCategory
from anomalib_ccl.data.sample import make_sample_dataset
from anomalib_ccl.data.sampler import CategorySampler

__all__ = ["MANTA", "CategorySampler", "MultiCategory", "MultiCategoryDataset", "make_sample_dataset"]
