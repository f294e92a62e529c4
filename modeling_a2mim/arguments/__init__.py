"""Command-line arguments as dataclasses: fields, their checks and their help."""
