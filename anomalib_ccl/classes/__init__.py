"""Which class a training image has."""

# anomalib's own models come first: importing them runs the plug-in's import hook, which needs the modules here.
import anomalib.models  # noqa: F401
