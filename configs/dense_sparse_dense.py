"""Dense-Sparse-Dense training (Han et al. 2017, arXiv 1607.04381) of the network of configs/digits.py.

    python -m squeeze_jax.main --config configs/dense_sparse_dense.py --workdir runs/dense_sparse_dense

A dense phase of 16 epochs; a sparse phase of 12 epochs with a third of the weights, pruned at once; and a dense phase
of 12 epochs, in which the pruned weights train again, starting from zero. The learning rate falls to a tenth with each
phase. Only checkpoints of the last phase compete for the best one.

songhan/SqueezeNet-DSD did this with SqueezeNet on ImageNet: from the network with a third of the weights, all weights
were retrained for 20 epochs at a learning rate of 1e-4, and top-1 rose from 57.44 % to 61.76 %. Of these points, some
may come from training on mirror images, which the network before it had not been.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config() -> ConfigDict:
    config = digits.get_config()
    config.pruning.density = 1 / 3
    config.pruning.end = "16 epochs"
    config.pruning.every = "16 epochs"
    config.pruning.release = "28 epochs"
    config.schedule.name = "step"
    config.schedule.milestones = (0.4, 0.7)
    config.schedule.factor = 0.1
    config.run.evaluate_every = "2 epochs"
    return config
