"""How anomalib and Lightning learn of this package."""
