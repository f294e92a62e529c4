"""`python -m modeling_a2mim.architectures`: see `commands.encoders`."""

import runpy


if __name__ == "__main__":
    runpy.run_module("modeling_a2mim.commands.encoders", run_name="__main__")
