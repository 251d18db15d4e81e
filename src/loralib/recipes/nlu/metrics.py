"""The metrics of classification and regression, by scikit-learn and scipy."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

CLASSIFICATION = ("accuracy", "f1", "matthews")
REGRESSION = ("pearson", "spearman")


def classification(predicted: NDArray[np.int64], expected: NDArray[np.int64], classes: int) -> dict[str, float]:
    """Accuracy, F1 and Matthews' correlation (0 where all rows are of one class, which correlates with nothing).

    F1 is that of class 1 when there are two `classes`, otherwise the mean over the classes that occur.

    >>> classification(np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]), classes=2)["accuracy"]
    0.75
    """
    average = "binary" if classes == 2 else "macro"
    return {
        "accuracy": float(accuracy_score(expected, predicted)),
        "f1": float(f1_score(expected, predicted, average=average, zero_division=0.0)),
        "matthews": float(matthews_corrcoef(expected, predicted)) if np.union1d(expected, predicted).size > 1 else 0.0,
    }


def regression(predicted: NDArray[np.float64], expected: NDArray[np.float64]) -> dict[str, float]:
    """Pearson's and Spearman's correlation; 0 where one side is constant, or so nearly that none can be computed.

    >>> regression(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))["spearman"]
    1.0
    """
    constant = np.ptp(predicted) == 0 or np.ptp(expected) == 0
    metrics = {"pearson": pearsonr, "spearman": spearmanr}
    found = {name: 0.0 if constant else float(metric(predicted, expected).statistic) for name, metric in metrics.items()}
    return {name: value if np.isfinite(value) else 0.0 for name, value in found.items()}


def of_logits(logits: NDArray[np.float64], expected: NDArray[np.float64]) -> dict[str, float]:
    """The metrics of a model's output: regression for one column, classification for several."""
    if logits.shape[-1] == 1:
        return regression(logits.reshape(-1), expected)
    return classification(logits.argmax(-1), expected.astype(np.int64), classes=logits.shape[-1])
