import pandas as pd

from mtvlib.figures_training import learning_diagnostics
from mtvlib.training import Epoch, history_csv


def history(tmp_path, *epochs):
    (tmp_path / "history.csv").write_text(history_csv(epochs))
    return pd.read_csv(tmp_path / "history.csv")


def test_every_measure_of_the_history_is_a_line(tmp_path):
    first = Epoch(1, 2.0, 0.2, 5.0, 0.9, 1.1, 0.3, 0.1, 1.0, 4.0, 20.0, 0.9)
    second = Epoch(2, 1.5, 0.3, 5.0, 0.8, 0.7, 0.4, 0.2, 0.5, 3.0, 21.0, 0.8)
    figure = learning_diagnostics(history(tmp_path, first, second))
    found = {line.name: list(line.y) for line in figure.data}
    assert found == {
        "Dice": [0.9, 0.8],
        "cross-entropy": [1.1, 0.7],
        "primary tumour": [0.3, 0.4],
        "lymph node metastases": [0.1, 0.2],
        "gradient": [4.0, 3.0],
        "learning rate": [1.0, 0.5],
        "patches a second": [20.0, 21.0],
        "with a lesion": [0.9, 0.8],
    }


def test_what_was_not_measured_is_left_empty(tmp_path):
    figure = learning_diagnostics(history(tmp_path, Epoch(1, 2.0, 0.2, 5.0)))
    assert all(pd.isna(line.y).all() for line in figure.data)
