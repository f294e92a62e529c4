"""`a2mim COMMAND ...`: finds the command, and imports no more than it needs, so that help is there at once."""

import difflib
import importlib
import importlib.util
import sys
from types import ModuleType

from . import __version__


PACKAGE = "modeling_a2mim"
# By name: the module whose `main` it is, and what it does.
COMMANDS = {
    "pretrain": ("commands.pretrain", "pre-train any timm encoder on unlabelled images"),
    "finetune": ("commands.finetune", "fine-tune, probe or evaluate an encoder on labelled images"),
    "predict": ("commands.predict", "classify images, or find what is in them: files to decisions"),
    "embed": ("commands.embed", "write a vector for each image, and find neighbors and duplicates"),
    "prepare": ("commands.prepare", "decode images once and write shards that train fast"),
    "export": ("commands.export", "write a model for another runtime: ONNX, torch.export"),
    "push": ("commands.push", "upload a folder to the Hub, or list what would be"),
    "app": ("commands.app", "serve a page for uploads: reconstructions, classes, similar images"),
    "reconstruct": ("commands.reconstruct", "show what pre-trained models reconstruct of images"),
    "interactions": ("commands.interactions", "measure how much patches work together in classifiers"),
    "fourier": ("commands.fourier", "measure the frequencies of feature maps"),
    "encoders": ("commands.encoders", "tell which encoders of timm pre-train, and how"),
    "recipes": ("commands.recipes", "list the recipes, or show one"),
    "convert": ("commands.convert", "turn an official checkpoint into a folder that others load"),
    "completion": ("commands.completion", "print the completion script of a shell"),
}
LIGHT = ("completion", "recipes")  # run no model
HELP = ("-h", "--help")


def main(argv: list[str] | None = None):
    """Run the command that the command line names."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) == 2 and argv[0] in (*HELP, "help"):
        argv = [argv[1], "--help"]
    if not argv or argv[0] in (*HELP, "help"):
        print(overview())
        sys.exit(0 if argv else 2)
    name, *rest = argv
    if name == "--version":
        print(f"a2mim {__version__}")
        return
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    if name in LIGHT or not set(HELP).isdisjoint(rest):
        without_init(PACKAGE)
    importlib.import_module(f"{PACKAGE}.{COMMANDS[name][0]}").main(rest)


def overview() -> str:
    """What commands there are."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: a2mim COMMAND [arguments]",
            "",
            "Pre-train any timm encoder on your own images with A2MIM, and use it.",
            "",
            *lines,
            "",
            "`a2mim COMMAND --help` tells its arguments, `a2mim --version` the version.",
        ]
    )


def without_init(name: str) -> ModuleType:
    """A package whose modules can be imported, but whose `__init__` does not run. That of ours imports torch and timm
    to register its models with transformers, which takes seconds and which no help needs."""
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return sys.modules[name]


if __name__ == "__main__":
    main()
