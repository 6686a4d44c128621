"""Figures of a test in constant memory: of rankings, of pixels, of each category."""

from anomalib_ccl.metrics.category import CategoryMetrics
from anomalib_ccl.metrics.pixel import PixelMetrics

__all__ = ["CategoryMetrics", "PixelMetrics"]
