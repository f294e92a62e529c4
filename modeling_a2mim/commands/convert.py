"""Official A2MIM and SimMIM checkpoints (.pth of OpenMixup) to this package."""

import argparse

from ..utils.command import run_command


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(prog="a2mim convert", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="an official checkpoint, .pth")
    parser.add_argument("output_folder", help="where the plain encoder or classifier, and pretraining/, are written")
    parser.add_argument("--mask_site", help="module of the timm encoder whose output the mask token enters")
    parser.add_argument("--encoder_only", action="store_true", help="leave out the decoder or classifier")
    return parser


def main(argv: list[str] | None = None):
    """The command: convert an official checkpoint to an exported folder, and print its model card."""
    run_command(build_parser(), convert, argv)


def convert(args: argparse.Namespace):
    """What the command does with its arguments.

    Raises:
        ValueError: if the file holds no official checkpoint.
        OSError: if it cannot be read, or the folder cannot be written.
    """
    from ..conversion.checkpoint import read_official
    from ..export.folder import export_model

    official = read_official(args.checkpoint, args.mask_site, args.encoder_only)
    folder = export_model(official.model, args.output_folder, record=official.record)
    print(_summary(official), f"to {folder}", sep=", ")
    print((folder / "README.md").read_text())


def _summary(official) -> str:
    from ..modeling_a2mim import A2MIMForPreTraining, A2MIMModel

    model = official.model
    core = model if isinstance(model, A2MIMModel) else model.a2mim
    facts = [f"{sum(p.numel() for p in model.parameters()):,} parameters"]
    facts.append(official.told)
    if core.site is not None:
        kept = "" if isinstance(model, A2MIMForPreTraining) else " (which is not exported)"
        facts.append(f"token at {core.site.module}{kept}")
    if core.num_classes:
        facts.append(f"{core.num_classes} classes")
    return f"{model.config.architecture}: {', '.join(facts)}"


if __name__ == "__main__":
    main()
