"""`python -m modeling_a2mim.export`: see `commands.push`."""

import runpy


if __name__ == "__main__":
    runpy.run_module("modeling_a2mim.commands.push", run_name="__main__")
