"""How many generated digits are the digit they were asked to be, judged by an SVM trained on the real ones.

python tools/digits_accuracy.py samples.npz
"""

import sys
from importlib import metadata

import numpy as np
from jsonargparse import auto_cli
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC


def main(samples: str, at_least: float = 0.0) -> None:
    """Prints the share of `samples` that an SVM trained on scikit-learn's 1,797 digits reads as their label.

    Args:
        samples: .npz of class-conditional digits: arr_0 uint8 [N, 8, 8, 1], arr_1 labels [N].
        at_least: exit with an error where the share is lower.
    """
    with np.load(samples) as file:
        images, labels = file["arr_0"], file["arr_1"]
    share = read_right(images, labels)
    known = cross_val_score(SVC(gamma=0.001), *load_digits(return_X_y=True), cv=10).mean()
    print(f"{share:.1%} of {len(labels)} samples read as their label; of real digits the SVM reads {known:.1%} right")
    print(f"scikit-learn {metadata.version('scikit-learn')}, numpy {np.__version__}, Python {sys.version.split()[0]}")
    if share < at_least:
        sys.exit(f"that is less than {at_least:.1%}")


def read_right(images: np.ndarray, labels: np.ndarray) -> float:
    """The share of uint8 images [N, ...] that the SVM reads as their label."""
    svm = SVC(gamma=0.001).fit(*load_digits(return_X_y=True))
    return float((svm.predict(images.reshape(len(images), -1) * (16 / 255)) == labels).mean())


if __name__ == "__main__":
    auto_cli(main)
