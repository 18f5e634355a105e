"""One analyzer per file; the registry scans this folder. What several of them share stands here."""

LARGEST = 1e150
"""A value beyond this is not kept in any history: its square would leave float64."""

LOSS, GRAD_NORM, UPDATE_NORM = 0, 1, 2
"""What an analyzer with a parameter `channel` can watch; a parameter is a number, so that it can be searched."""

CHANNEL_DOC = "what is watched: 0 the loss, 1 the gradient norm, 2 the update norm"
