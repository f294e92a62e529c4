"""`python -m modeling_a2mim.app`: see `commands.app`."""

import runpy


if __name__ == "__main__":
    runpy.run_module("modeling_a2mim.commands.app", run_name="__main__")
