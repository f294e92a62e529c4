"""What an argument that there is not was meant to be."""

from modeling_a2mim.commands import finetune, pretrain
from modeling_a2mim.utils.flag_names import ELSEWHERE, meant


def test_names_of_other_programs_lead_to_arguments_that_there_are():
    there = [{action.dest for action in command.build_parser()._actions} for command in (pretrain, finetune)]
    assert set(ELSEWHERE.values()) <= there[0] | there[1]
    assert not set(ELSEWHERE) & (there[0] | there[1])


def test_meant():
    known = ["learning_rate", "lr_scheduler_type", "image_size"]
    assert meant("lr", known) == "did you mean --learning_rate?"
    assert meant("img-size", known) == "did you mean --image_size?"
    assert meant("learning_rates", known) == "did you mean --learning_rate?"
    assert meant("epochs", known) == meant("zzz", known) == ""  # no argument of this program
