"""The command line `a2mim`. What it runs is in `modeling_a2mim`, which `import modeling_a2mim` gives to Python."""

__version__ = "0.1.0"
