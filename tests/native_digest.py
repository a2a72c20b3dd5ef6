"""Prints a digest of the native kernel's results. Run by a test.

python tests/native_digest.py 28,28,1 16,8,8 128 96  # shape, features, then batch sizes
"""

import hashlib
import logging
import sys

import jax
import numpy as np
from flax import nnx

from cae_jax.models import autoencoders, topology
from cae_jax.ops import native
from cae_jax.training.soap import scale_by_soap

logging.getLogger("cae_jax").setLevel(logging.WARNING)  # print nothing but the digest
shape, features = (tuple(map(int, argument.split(","))) for argument in sys.argv[1:3])
network = topology.convolutional(shape, features)
kernel = native.Kernel(network.kernel_sizes, network.image_shape, network.code_shape)
model = autoencoders.ConvAutoencoder(features, shape, rngs=nnx.Rngs(0))
params = nnx.state(model, nnx.Param)
results = []
for batch in map(int, sys.argv[3:]):
    images = np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8)
    floats, weights = images.astype(np.float32) / 255, np.ones(batch, np.float32)
    results.append(jax.jit(kernel.bce_and_grad)(params, images, floats, weights))
    results.append(jax.jit(kernel.losses)(params, floats, images))
    codes = jax.jit(kernel.encode)(params, images)
    results.append((codes, jax.jit(kernel.decode)(params, codes)))
optimizer = scale_by_soap(kernel=kernel.soap)
grads, state = results[0][1], optimizer.init(params)
for _ in range(10):  # a refreshment of the bases
    direction, state = jax.jit(optimizer.update)(grads, state)
results.append((direction, state))
data = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(results))
print(hashlib.sha256(data).hexdigest())
