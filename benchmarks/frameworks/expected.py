"""Expected loss ranges, to detect a training that is fast but wrong."""

# From this number of steps on, range of an epoch's mean training loss. Measured on 60,000 and 7,500
# images with batches of 128, 512 and 4096, all three models, some with seeds 0 to 2, the recipes of
# configs/ and Adam at 1e-3, epochs 3 to 10: 0.276 to 0.283 from 4,000 steps on, 0.278 to 0.298 from
# 1,000, 0.297 to 0.314 from 500, 0.301 to 0.380 from 140. The lowest possible loss, the mean
# entropy of the pixels, is 0.2402; a network that does not learn stays at 0.69. Other images have
# the range of few steps.
_LOSS_RANGES = (
    (4000, 0.265, 0.295),
    (1000, 0.265, 0.315),
    (500, 0.275, 0.34),
    (140, 0.285, 0.45),
    (0, 0.30, 0.75),
)


def check_loss(loss: float, steps: int) -> str | None:
    """Returns what is wrong with the mean loss of the epoch that ends at `steps`, or None."""
    low, high = next((low, high) for start, low, high in _LOSS_RANGES if steps >= start)
    if low <= loss <= high:  # false for NaN too
        return None
    return f"loss {loss:.4f} after {steps} steps is outside [{low}, {high}]"
