"""Seeds."""

from transformers import TrainingArguments


def data_seed(args: TrainingArguments) -> int:
    """The seed of what is drawn of the data (order, crops, masks, held-out samples): that of the run, if none is
    given."""
    return args.seed if args.data_seed is None else args.data_seed
