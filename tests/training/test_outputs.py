"""The output folder of a run: what another run left in it is refused, or deleted."""

import logging

import pytest

from modeling_a2mim.training.outputs import METRICS, RECONSTRUCTIONS, check_apart, check_output_dir, clear_output_dir


def test_a_finished_run_is_refused_unless_overwritten_or_resumed(tmp_path):
    check_output_dir(str(tmp_path), None)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"^output_dir: .* holds results \(model\.safetensors\) of another run; name"):
        check_output_dir(str(tmp_path), None)
    check_output_dir(str(tmp_path), "last")
    check_output_dir(str(tmp_path), None, overwrite=True)
    with pytest.raises(ValueError, match="^overwrite_output_dir: a run that resumes"):
        check_output_dir(str(tmp_path), "last", overwrite=True)
    with pytest.raises(ValueError, match="^overwrite_output_dir: would delete .* from which this run starts"):
        check_output_dir(str(tmp_path), None, overwrite=True, source=str(tmp_path))
    with pytest.raises(ValueError, match="^output_dir: .* is a file"):
        check_output_dir(str(tmp_path / "model.safetensors"), None)


def test_figures_are_not_written_where_images_are_read(tmp_path):
    images, output = tmp_path / "images", tmp_path / "out"
    (output / RECONSTRUCTIONS).mkdir(parents=True)
    images.mkdir()
    check_apart(output, {"train_dir": [str(images), None], "dataset_name": ["org/data"]})
    with pytest.raises(ValueError, match=r"^output_dir: .* lies in .* \(--train_dir\)"):
        check_apart(images / "out", {"train_dir": [str(images)]})
    with pytest.raises(ValueError, match="^validation_dir: .* lies in .*, which the run writes or deletes"):
        check_apart(output, {"validation_dir": [str(output / RECONSTRUCTIONS)]})
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "more").symlink_to(output)
    with pytest.raises(ValueError, match="^output_dir: "):
        check_apart(output, {"train_dir": [str(tmp_path / "linked")]})


def test_only_what_runs_write_is_deleted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "a2mim")
    for folder in ("checkpoint-3", RECONSTRUCTIONS, "runs"):
        (tmp_path / folder).mkdir()
    for name in (METRICS, "model.safetensors", "notes.txt", "model.pt2", "onnx/model.onnx", "onnx/own.onnx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    clear_output_dir(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "onnx", "runs"]
    assert [path.name for path in (tmp_path / "onnx").iterdir()] == ["own.onnx"]
    assert "6 files and folders of an earlier run deleted" in caplog.text
    caplog.clear()
    clear_output_dir(tmp_path)
    assert not caplog.records
