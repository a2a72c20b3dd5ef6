"""Prints a digest of what the native step gives. Run by a test.

python tests/fused_digest.py 16,8,8 128 96  # features, then batch sizes
"""

import hashlib
import sys

import jax
import numpy as np
from flax import nnx

from cae_jax.models import autoencoders
from cae_jax.ops import native

features, *batches = sys.argv[1:]
model = autoencoders.ConvAutoencoder(tuple(map(int, features.split(","))), rngs=nnx.Rngs(0))
params = nnx.state(model, nnx.Param)
results = []
for batch in map(int, batches):
    images = np.random.default_rng(0).integers(0, 256, (batch, 28, 28, 1), np.uint8)
    floats, weights = images.astype(np.float32) / 255, np.ones(batch, np.float32)
    results.append(jax.jit(native.value_and_grad)(params, images, floats, weights))
    results.append(jax.jit(native.losses)(params, floats, images))
    codes = jax.jit(native.encode)(params, images)
    results.append((codes, jax.jit(native.decode)(params, codes)))
data = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(results))
print(hashlib.sha256(data).hexdigest())
