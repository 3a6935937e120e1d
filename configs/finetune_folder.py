"""Fine-tunes any network with any weights on a folder of your own photographs, of 100 to 5,000 pictures, in minutes.

    python -m squeeze_jax.main --config configs/finetune_folder.py --config.dataset.name=FOLDER --workdir runs/photos
    python -m squeeze_jax.main --config configs/finetune_folder.py:squeezenet_v1.1.caffemodel \
        --config.dataset.name=FOLDER --workdir runs/photos_caffe
"""

from ml_collections import ConfigDict

from squeeze_jax.config import base_config


def get_config(weights: str = "torchvision/squeezenet1_1") -> ConfigDict:
    config = base_config()
    config.init_from = weights
    config.init_new_head = True
    config.dataset.name = "photographs"
    config.dataset.skip_unreadable = True
    config.crop.resize = 0  # one's own subjects may reach to the margins
    config.crop.smallest_area = 0.35
    config.augment.flip = ("width",)

    config.model.name = None  # the network, its options and its preprocessing are those of the weights
    config.model.strict = False
    config.model.head_relu = False  # some classes of a new head may never pass it

    config.train.batch_size = 32
    config.train.duration = "150 steps"
    config.task.label_smoothing = 0.1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.learning_rate_multipliers = (("^(conv10|fc|fc8)/", 10.0),)  # the new last layer
    config.optimizer.weight_decay = 0.01
    config.schedule.name = "cosine"
    config.schedule.warmup = "10 %"
    config.evaluation.batch_size = 64
    config.evaluation.best_metric = "loss"  # the accuracy on 20 pictures has many ties
    config.run.log_every = "5 %"
    config.run.evaluate_every = "20 %"
    config.run.checkpoint_every = "20 %"
    return config
