"""Times training and inference in cae-jax and in other frameworks.

    sweep           measures all cases in turn
    end_to_end      measures whole processes: scripts/train.py and Keras
    time_to         measures trainings until the validation loss reaches a value
    case            describes what one process measures, and starts the process
    worker          that process: start-up, epochs, evaluation, calls
    adapter         the interface of the frameworks, a stopwatch, the images
    cae_jax_        this package, with any of its backends
    flax_           plain Flax with one jitted call per step
    keras_          Keras 3 on TensorFlow or JAX
    torch_          PyTorch, eager or compiled
    expected        expected loss ranges
    environment     versions, flags and load of the machine
    summary         medians over the rounds, growth of the cost
    tables          Markdown tables

``python -m benchmarks.frameworks`` is the command line. The networks of the other frameworks are
written by hand, independently of `cae_jax.models.topology`.
"""
