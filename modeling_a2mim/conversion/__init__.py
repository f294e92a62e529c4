"""Official A2MIM and SimMIM checkpoints as models of this package."""
