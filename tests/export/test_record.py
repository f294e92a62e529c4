"""What is kept of the records of how models were made."""

from modeling_a2mim.export.record import earlier_runs


def test_what_is_kept_of_records_of_others():
    foreign = {"steps": "many", "task": ["x"], "origin": "converted", "earlier": [3, {"steps": 5, "note": "n"}]}
    assert earlier_runs(foreign) == [{"steps": 5}, {"origin": "converted"}]
    assert earlier_runs({"earlier": "none"}) == [{}]
