"""Small noisy pictures of eight shapes, drawn from a seed: a task that has to be learned and cannot be looked up.

Position, size, contrast and noise are random; the class is not to be read off any single pixel, nor off the mean.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIDE = 16
SHAPES = ("disc", "ring", "square", "frame", "plus", "cross", "bars", "columns")

Pictures = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]


def pictures(count: int, *key: int) -> tuple[Pictures, Classes]:
    """`count` pictures [count, SIDE, SIDE] with mean about 0, and the number of each one's shape [count].

    A pure function of its arguments: `key` seeds the generator.

    >>> drawn, classes = pictures(4, 1, 0)
    >>> drawn.shape, bool((classes < len(SHAPES)).all())
    ((4, 16, 16), True)
    """
    generator = np.random.default_rng(key)
    classes = generator.integers(0, len(SHAPES), count)
    middle = generator.uniform(0.38, 0.62, (2, count, 1, 1)) * (SIDE - 1)
    size = generator.uniform(4.0, 6.5, (count, 1, 1))
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    dy, dx = (y - middle[0]) / size, (x - middle[1]) / size
    away, box = np.hypot(dx, dy), np.maximum(np.abs(dx), np.abs(dy))
    narrow = 0.28
    drawn = np.stack(
        [
            away < 0.8,
            np.abs(away - 0.75) < 0.2,
            box < 0.75,
            np.abs(box - 0.75) < 0.2,
            (np.minimum(np.abs(dx), np.abs(dy)) < narrow) & (box < 1.0),
            (np.minimum(np.abs(dx - dy), np.abs(dx + dy)) < 1.4 * narrow) & (box < 0.9),
            (np.abs(np.abs(dy) - 0.6) < narrow) & (box < 1.0),
            (np.abs(np.abs(dx) - 0.6) < narrow) & (box < 1.0),
        ]
    )[classes, np.arange(count)]
    # either sign: dark on bright as often as bright on dark
    contrast = generator.uniform(0.6, 1.2, (count, 1, 1)) * generator.choice([-1.0, 1.0], (count, 1, 1))
    noise = generator.standard_normal((count, SIDE, SIDE))
    picture = contrast * (drawn - drawn.mean(axis=(1, 2), keepdims=True)) + 0.35 * noise
    return picture.astype(np.float32), classes
