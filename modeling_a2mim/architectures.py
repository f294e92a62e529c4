"""`python -m modeling_a2mim.architectures`: see `commands.architectures`."""

from .commands.architectures import main
from .commands.parser import run_as_command


if __name__ == "__main__":
    run_as_command(main)
