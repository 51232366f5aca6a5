"""The walk from a rule to the reason why it is wrong."""

import pytest

from experiments import compare_tour as tour


def test_the_walk(capsys, tmp_path):
    tour.main(["--html", str(tmp_path / "wrong.html")])
    out, err = capsys.readouterr()
    assert err == ""
    assert all(len(line) <= 120 for line in out.splitlines())
    for words in (
        "The rules disagree: gradient of x differs by",
        "dx by me    [0. 0. 0. 0. 3. 2. 1. 0.",
        "dx by jax   [0. 0. 0. 0. 1. 2. 3. 0.",
        "with w = [1, 2, 1]: The rules agree on 3 arrays.",
        "\nThe rules agree on 5 arrays.",
    ):
        assert words in out
    assert "gradient of x" in (tmp_path / "wrong.html").read_text()


def test_the_rule_that_is_wrong_trains(capsys):
    errors = tour.it_seems_to_work()
    assert errors[-1] < 1e-4 * errors[0]


def test_a_folder_that_is_not_there_is_one_line(capsys):
    with pytest.raises(SystemExit, match="2"):
        tour.main(["--html", "nowhere/at/all.html"])
    assert capsys.readouterr().err.startswith("compare_tour: ")
