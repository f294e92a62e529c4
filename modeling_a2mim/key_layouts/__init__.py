"""Encoders of transformers as timm's: the architecture and its arguments, the names of the weights, the images."""

from .encoder import LAYOUTS, encoder_fields, timm_weights


__all__ = ["LAYOUTS", "encoder_fields", "timm_weights"]
