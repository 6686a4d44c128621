"""Metrics in constant memory, and the reports of each category and of each image."""

from anomalib_ccl.metrics.category import CategoryMetrics
from anomalib_ccl.metrics.image_report import ImageReport
from anomalib_ccl.metrics.pixel import PixelMetrics
from anomalib_ccl.metrics.report import CategoryReport
from anomalib_ccl.metrics.steadiness import Steadiness

__all__ = ["CategoryMetrics", "CategoryReport", "ImageReport", "PixelMetrics", "Steadiness"]
