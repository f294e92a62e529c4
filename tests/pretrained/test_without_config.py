"""Single files of weights, which do not tell what they are of."""

import pytest
import torch

from modeling_a2mim import open_encoder, pretraining_model_from

from ..foreign_files import ENCODERS, random_encoder


def start(path, size):
    """The positions that a model for images of this size starts with."""
    name, args, _ = ENCODERS["vit"]
    encoder = open_encoder(str(path), architecture=name, model_args=args, image_size=size)
    model, _ = pretraining_model_from(encoder, image_size=size)
    return model.a2mim.encoder.pos_embed.detach()


@pytest.mark.parametrize(("size", "warned"), [([64, 64], False), ([64, 96], False), ([32, 128], True)], ids=str)
def test_positions_of_as_many_patches(tmp_path, caplog, size, warned):
    """Those of a square are as many as those of some rectangles, and the file does not tell which."""
    weights = random_encoder("vit").state_dict()  # of 64 px
    torch.save(weights, tmp_path / "in.pth")
    positions = start(tmp_path / "in.pth", size)
    kept = positions.shape == weights["pos_embed"].shape and torch.equal(positions, weights["pos_embed"])
    assert kept == (size != [64, 96])
    told = "pos_embed: taken as positions of 2 x 8 patches; if they are of 4 x 4, as most are, give the weights as"
    assert (told in caplog.text) == warned


def test_copies_of_which_any_may_be_meant(tmp_path, caplog):
    weights = random_encoder("vit").state_dict()
    others = {name: value + 1 for name, value in weights.items()}
    torch.save({"model": weights, "best_model": others}, tmp_path / "in.pth")
    assert torch.equal(start(tmp_path / "in.pth", [64, 64]), weights["pos_embed"])
    assert "stored 2 times, with other weights: those under 'model.' are taken, and not those under 'best_model.'" in (
        caplog.text
    )
    caplog.clear()
    torch.save({"model": weights, "best_model": weights, "ema": weights}, tmp_path / "in.pth")
    start(tmp_path / "in.pth", [64, 64])
    assert "stored" not in caplog.text
