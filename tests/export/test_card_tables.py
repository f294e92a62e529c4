"""The tables of a model card."""

from modeling_a2mim.export.card_tables import evaluation_section, run_facts


def test_what_was_not_measured_is_said():
    assert evaluation_section({}) == "Not evaluated."
    section = evaluation_section({}, encoder=True)
    assert section.endswith("How well the features serve a task after fine-tuning or probing was not evaluated here.")


def test_what_was_measured_and_what_the_paper_says():
    published = {"method": "A2MIM", "architecture": "ViT-B", "dataset": "ImageNet-1K", "metric": "top-1"}
    record = {
        "evaluation": {"step": 1200, "images": 1000, "masked_psnr": 21.5, "masked_l1": 0.0, "auroc": None},
        "evaluated_on": "org/data",
        "published": [{**published, "value": "84.2", "protocol": "fine-tuned"}],
    }
    section = evaluation_section(record)
    assert section.startswith("Measured on 1,000 images of org/data, at step 1,200:")
    assert "| PSNR of masked pixels (dB) | 21.5000 |" in section
    assert "auroc" not in section
    assert "These numbers are the paper's, not measured here:" in section
    assert section.splitlines()[-1] == "| A2MIM | ViT-B | ImageNet-1K | top-1 | 84.2 | fine-tuned |"


def test_what_is_given_to_a_normalised_target_is_said():
    record = {"evaluation": {"step": 1, "images": 10, "masked_psnr": 21.5, "mean_fill_psnr": 15.0}}
    section = evaluation_section(record, cells=True)
    assert "| PSNR of masked pixels, given the mean and deviation of each cell (dB) | 21.5000 |" in section
    assert "| PSNR of the mean colour of each cell in its place (dB) | 15.0000 |" in section


def test_of_a_model_that_was_not_trained_here():
    assert run_facts({"origin": "converted"}) == [("training", "converted")]
