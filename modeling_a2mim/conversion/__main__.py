"""`python -m modeling_a2mim.conversion`: see `commands.convert`."""

import runpy


if __name__ == "__main__":
    runpy.run_module("modeling_a2mim.commands.convert", run_name="__main__")
