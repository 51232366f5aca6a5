"""metrics.jsonl: what a resume keeps of it, and what a kill leaves."""

import json

import pytest

from experiments.train import metrics


def test_a_resume_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = metrics.Lines(path, 0)
    for step in (1, 2, 3):
        lines.write(step=step, loss=1.0 / step)
        lines.write(step=step, epoch=0, test_accuracy=0.5)
    lines.write(final=True, step=3)
    lines.close()
    path.write_bytes(path.read_bytes() + b'{"step": 4, "lo')  # killed in the middle of a line
    again = metrics.Lines(path, 2)
    again.write(step=3, loss=0.25)
    again.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], "loss" in line) for line in found] == [
        (1, True),
        (1, False),
        (2, True),
        (2, False),
        (3, True),
    ]
    assert found[-1]["loss"] == 0.25


def test_a_final_line_of_the_same_step_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 3}\n{"final": true, "step": 3}\n')
    metrics.Lines(path, 3).close()
    assert metrics.read(path) == [{"step": 3}]


def test_lines_are_there_as_soon_as_they_are_written(tmp_path):
    lines = metrics.Lines(tmp_path / "m.jsonl", 0)
    lines.write(step=1)
    assert metrics.read(tmp_path / "m.jsonl") == [{"step": 1}]
    lines.close()


def test_nan_is_no_json(tmp_path):
    lines = metrics.Lines(tmp_path / "m.jsonl", 0)
    with pytest.raises(ValueError, match="JSON compliant"):
        lines.write(step=1, loss=float("nan"))
    lines.close()


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: .*m\.jsonl"), metrics.naming(tmp_path / "m.jsonl"):
        raise OSError(28, "No space left on device")
