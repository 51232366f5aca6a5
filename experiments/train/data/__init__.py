"""Images of a training run: opened and decoded once, drawn in batches, changed at random inside the step.

sources.py is what every form of data is to the rest, folders.py and arrays.py are the forms, decode.py is Pillow,
cache.py the file that keeps what was decoded, dataset.py brings them together. batches.py and augment.py serve the
training. `Dataset.notes` says how the data was understood, where that is not plain: for the user to read.
"""

from experiments.train.data.augment import augment
from experiments.train.data.batches import Batches, evaluation_batches, order
from experiments.train.data.dataset import Dataset, Split, describe, open_dataset
from experiments.train.data.sources import Problem

__all__ = [
    "Batches",
    "Dataset",
    "Problem",
    "Split",
    "augment",
    "describe",
    "evaluation_batches",
    "open_dataset",
    "order",
]
