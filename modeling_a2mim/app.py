"""`python -m modeling_a2mim.app`: see `commands.app`."""

from .commands.app import main


if __name__ == "__main__":
    main()
