"""JSON that every reader takes: numbers that are not finite, which JSON has not, become null."""

import json
import math
import os
from pathlib import Path


def finite(value):
    """`value` (dicts, lists and plain values) with `None` for NaN and infinity."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_json(value, path: str | os.PathLike):
    """Write `value` to a file, as transformers writes its state."""
    text = json.dumps(finite(value), indent=2, sort_keys=True, allow_nan=False)
    Path(path).write_text(f"{text}\n", encoding="utf-8")
