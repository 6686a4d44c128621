"""What a calibrated model knows of its products: a table and three pictures, from a checkpoint and a datamodule.

``python -m anomalib_ccl.insight --help`` tells how to make them.
"""

from anomalib_ccl.insight.figures import calibration_figures
from anomalib_ccl.insight.pictures import confusion_picture, embedding_picture, score_picture
from anomalib_ccl.insight.scores import Scores, collect_scores
from anomalib_ccl.insight.table import calibration_tables

__all__ = [
    "Scores",
    "calibration_figures",
    "calibration_tables",
    "collect_scores",
    "confusion_picture",
    "embedding_picture",
    "score_picture",
]
