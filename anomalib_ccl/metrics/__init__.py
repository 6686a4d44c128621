"""Metrics in constant memory, and the report of each category."""

from anomalib_ccl.metrics.category import CategoryMetrics
from anomalib_ccl.metrics.pixel import PixelMetrics
from anomalib_ccl.metrics.report import CategoryReport
from anomalib_ccl.metrics.steadiness import Steadiness
from anomalib_ccl.metrics.visualizer import CategoryVisualizer

__all__ = ["CategoryMetrics", "CategoryReport", "CategoryVisualizer", "PixelMetrics", "Steadiness"]
