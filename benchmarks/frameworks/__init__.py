"""Times training and use of the networks, as this package and as other libraries do them.

    sweep           all configurations in turn
    whole           scripts/train.py and Keras as whole processes
    spec            what one process measures, and the process for it
    worker          that process: start, epochs, evaluation, reconstruction
    contender       what the following have in common
    ours            the contender of this package, by any of its methods
    flax_peer       plain Flax with one jitted call a step
    keras_peer      Keras 3 on TensorFlow or JAX
    torch_peer      PyTorch, eager or compiled
    bands           floating-point operations and loss bands of the networks
    facts           versions, flags, load: what a number depends on
    rows, tables    from measurements to numbers to compare, and to Markdown

``python -m benchmarks.frameworks`` is the command line.
"""
