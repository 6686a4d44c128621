"""What a test and a prediction leave: a table, ``predictions.csv`` and heatmaps; and how well products are known."""

# anomalib's own models come first: importing them runs the plug-in's import hook, which needs the modules here.
import anomalib.models  # noqa: F401
