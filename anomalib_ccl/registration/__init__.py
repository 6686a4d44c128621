"""How anomalib and Lightning learn our names: the import hook, the registry, and one callback that knows its place."""
