"""What the networks should cost and come to: floating-point operations, bands of the loss."""

# For each layer the places at which its weights are applied, and their number without the biases.
_LAYERS = {
    "conv": (
        (28 * 28, 9 * 1 * 16),
        (14 * 14, 9 * 16 * 8),
        (7 * 7, 9 * 8 * 8),
        (4 * 4, 9 * 8 * 8),
        (8 * 8, 9 * 8 * 8),
        (14 * 14, 9 * 8 * 16),
        (28 * 28, 9 * 16 * 1),
    ),
    "simple": ((1, 784 * 32), (1, 32 * 784)),
    "deep": (
        *((1, 784 * 128), (1, 128 * 64), (1, 64 * 32)),
        *((1, 32 * 64), (1, 64 * 128), (1, 128 * 784)),
    ),
}

# From so many steps on, the mean training loss of an epoch lies between. Measured on 60,000 and
# 7,500 images with batches of 128, 512 and 4096, all three models, seeds 0 to 2 for some: the
# recipes of configs/ and Adam at 1e-3, epochs 3 to 10. Seen were 0.276 to 0.283 from 4,000 steps
# on, 0.278 to 0.298 from 1,000, 0.297 to 0.314 from 500, 0.301 to 0.380 from 140. The floor of the
# loss, the mean entropy of the pixels, is 0.2402; a network that learns nothing stays at 0.69.
_BANDS = (
    (4000, 0.265, 0.295),
    (1000, 0.265, 0.315),
    (500, 0.275, 0.34),
    (140, 0.285, 0.45),
    (0, 0.30, 0.75),
)


def training_flops(model: str) -> int:
    """Operations of one image's forward and backward pass, in the plain form of the layers.

    A multiply-add counts 2. The backward pass costs twice the forward one, but for the derivative
    by the images, which nobody needs.
    """
    forward = [2 * places * weights for places, weights in _LAYERS[model]]
    return 3 * sum(forward) - forward[0]


def check_loss(loss: float, steps: int) -> str | None:
    """What is wrong with the mean loss of an epoch that ended after so many steps, if anything."""
    low, high = next((low, high) for start, low, high in _BANDS if steps >= start)
    if low <= loss <= high:  # false for NaN too
        return None
    return f"loss {loss:.4f} after {steps} steps is outside [{low}, {high}]"
