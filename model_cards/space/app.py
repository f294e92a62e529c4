"""A Space that shows what A2MIM models make of an image: those that its variable A2MIM_MODELS names, ids on the Hub
with spaces between."""

import os
import sys


def main():
    models = os.environ.get("A2MIM_MODELS", "").split()
    if not models:
        sys.exit("set the variable A2MIM_MODELS in the settings of the Space, such as: org/a2mim-r50 org/a2mim-vit-b")
    from modeling_a2mim.commands import app  # which takes seconds

    app.main([*models, "--host", "0.0.0.0"])


if __name__ == "__main__":
    main()
