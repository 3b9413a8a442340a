"""The diabetes data that ship inside scikit-learn: a small regression, 442 patients, without a download.

Ten measurements of a patient (age, sex, body mass index, blood pressure, six blood sera) and the progression of the
disease a year later (Efron et al. 2004, "Least Angle Regression").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fingerbench.data.splits import split
from fingerbench.errors import require
from fingerbench.records import Dataset, Images
from fingerbench.task import Regression

PATIENTS = 442


@dataclass(frozen=True)
class Diabetes:
    """Patients as float32 images (1, 1, 10), one pixel a measurement, with the progression to predict.

    half: patients in a and in b; what is left is halved into finetune and test; seed: of the splits. Each measurement,
    and the progression, is scaled so that it goes from 0 to 1 over all patients. There are no transfer images.
    """

    half: int = 150
    seed: int = 0

    def load(self) -> Dataset:
        """Return the splits, by default of 150, 150, 71 and 71 patients.

        Raises:
            UserError: a half that leaves too few patients.
        """
        from sklearn.datasets import load_diabetes  # takes a second to import

        require(2 <= self.half <= 200, "data.half", "a number of patients from 2 to 200", self.half)
        measurements, progression = load_diabetes(return_X_y=True, scaled=False)
        x = torch.from_numpy(_scaled(measurements)).view(PATIENTS, 1, 1, -1)
        images = Images(x, torch.from_numpy(_scaled(progression[:, None])))
        a, rest = split(images, self.half, self.seed, stratified=False)
        b, rest = split(rest, self.half, self.seed, stratified=False)
        finetune, test = split(rest, len(rest) // 2, self.seed, stratified=False)
        return Dataset("diabetes", Regression(), a, b, finetune, test, None)


def _scaled(columns: np.ndarray) -> np.ndarray:
    """Return float32 (n, columns), each column mapped linearly onto [0, 1]."""
    low, high = columns.min(0), columns.max(0)
    scaled: np.ndarray = ((columns - low) / (high - low)).astype(np.float32)
    return scaled
