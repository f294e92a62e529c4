"""What masked pre-training teaches: numbers first, then a figure."""

import importlib
from typing import Any


# Imported when they are asked for: other modules of the package draw with this one's, and would wait for each other.
_MODULES = {
    "fourier_analysis": "fourier",
    "interaction_strength": "measurement",
    "reconstruct": "reconstruction",
    "reconstruction_quality": "reconstruction",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
