"""SqueezeNet 1.1 on CIFAR-10, with a stride-1 stem, batch norm and identity bypasses: 730,570 parameters.

    python -m squeeze_jax.main --config configs/cifar10.py --workdir runs/cifar10          # the CPU recipe
    python -m squeeze_jax.main --config configs/cifar10.py:polish --workdir runs/cifar10_polish \
        --config.init_from=runs/cifar10                                                    # three epochs more
    python -m squeeze_jax.main --config configs/cifar10.py:long --workdir runs/cifar10_long

`study` is the small network of experiments/squeeze_ratio.py and bypass.py.

The dataset is TFDS's cifar10, or a folder of JPEGs: `--config.dataset.name=FOLDER`. 5,000 training images are held out,
always the same ones, to choose the best checkpoint; the test images are read once a run, at its end.

Run here (1 seed, 2 CPU cores that other work shared, 2026-11-22): 0.848 test top-1 after 49 minutes; with the second
stage 0.850 after 10 minutes more (experiments/results/cifar10.csv and cifar10_polish.csv). The first stage overfits,
0.893 on training images and 0.850 on the held-out ones, but crops of 4 pixels, label smoothing and a 16th epoch gave no
more: 0.873, 0.850, and 0.844 on the test images after 53 minutes (cifar10_smoothing.csv, made with
`--config.train.duration='16 epochs' --config.train.label_smoothing=0.1 --config.augment.pad_and_crop=4`). Nor did
pooling after fire7 instead of fire5, in batches of 64: 0.822 after 9 epochs and 41 minutes (cifar10_later_pooling.csv,
made with `--config.model.pool_after=(1,3,7) --config.train.batch_size=64 --config.optimizer.learning_rate=0.1
--config.augment.pad_and_crop=4 --config.train.duration='9 epochs' --config.schedule.warmup='1 epoch'`, while the
virtual machine was given two thirds of its cores). A stem of 32 filters, pooling after fire6 instead of fire5, crops of
3 pixels and 17 epochs took 50 minutes: 0.855 on the held-out images, 0.849 on the test images (cifar10_narrow_stem.csv,
made with `--config.model.stem_filters=32 --config.model.pool_after=(1,3,6) --config.augment.pad_and_crop=3
--config.train.duration='17 epochs'`, at commit 2d6581a and alone on the machine).

The long recipe (200 epochs, cutout, mixup) is for an accelerator and was not run. No paper reports SqueezeNet on
CIFAR-10; the unchanged network on 32 x 32 images ends near 61 % (khoroshe/squeezenet).
"""

from ml_collections import ConfigDict

from squeeze_jax.config import ConfigError, base_config


def get_config(recipe: str = "cpu") -> ConfigDict:
    config = base_config()
    config.dataset.name = "cifar10"
    config.dataset.validation_split = ""
    config.dataset.held_out = 5000
    config.dataset.mean = (125.3, 123.0, 113.9)
    config.dataset.std = (63.0, 62.1, 66.7)
    config.augment.flip = ("width",)

    config.model.name = "squeezenet_v1_1"
    config.model.stem = "3x3/1"
    config.model.bypass = "simple"
    config.model.use_batch_norm = True
    config.model.head_relu = False
    config.model.dropout_rate = 0.0

    config.train.batch_size = 128
    config.optimizer.name = "sgd"
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.run.log_every = "0.25 epochs"
    config.run.evaluate_every = "2 epochs"
    config.run.checkpoint_every = "1 epoch"
    if recipe == "cpu":
        config.train.duration = "15 epochs"
        config.optimizer.learning_rate = 0.15
        config.schedule.name = "polynomial"
        config.schedule.warmup = "2 epochs"
        config.augment.pad_and_crop = 2
    elif recipe == "polish":
        config.train.duration = "3 epochs"
        config.train.label_smoothing = 0.1
        config.train.ema_decay = 0.99
        config.optimizer.learning_rate = 0.04
        config.schedule.name = "polynomial"
        config.augment.pad_and_crop = 4
        config.run.evaluate_every = "1 epoch"
    elif recipe == "study":
        # The paper's design space (section 5.1) at a quarter of its width, and at a resolution that a CPU affords.
        config.model.name = "squeezenet_v1_0"
        config.model.bypass = "none"
        config.model.stem = "3x3/2"
        config.model.stem_filters = 24
        config.model.base_filters = 32
        config.model.filter_increment = 32
        config.model.pool_after = (3, 5)
        config.train.duration = "10 epochs"
        config.optimizer.learning_rate = 0.1
        config.schedule.name = "polynomial"
        config.schedule.warmup = "1 epoch"
        config.augment.pad_and_crop = 2
    elif recipe == "long":
        config.train.duration = "200 epochs"
        config.train.ema_decay = 0.999
        config.optimizer.learning_rate = 0.1
        config.schedule.name = "cosine"
        config.schedule.warmup = "5 epochs"
        config.augment.pad_and_crop = 4
        config.augment.cutout = 8
        config.augment.mixup = 0.2
    else:
        raise ConfigError(f"configs/cifar10.py has the recipes cpu, polish, study and long, not {recipe!r}.")
    return config
