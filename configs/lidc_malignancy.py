"""SqueezeNodule-Net v2 on slices of LIDC's lung nodules: benign or malignant, in five folds by exam.

    python -m squeeze_jax.data.prepare lidc_malignancy_slices_64x64.zip
    python -m squeeze_jax.main --config configs/lidc_malignancy.py --workdir runs/lidc --config.dataset.fold=0
    python -m experiments.sweep --config configs/lidc_malignancy.py --workdir runs/lidc_folds --seeds 0 \
        --config.dataset.fold=0,1,2,3,4

The zip, from MaximoDouglas/pulmonary-nodule-classification, has folders class/exam/nodule/ with 3,924 slices of 64 x 64
pixels of 396 exams. An exam counts as a patient and is in one split only. No published figure is for these folds.

Result: AUC 0.901 by nodule over mirror images, 95 % interval 0.873 to 0.926; SqueezeNet 0.876 (1 seed, 2 minutes per
fold, docs/results.md).
"""

from ml_collections import ConfigDict

from configs import luna_candidates


def get_config() -> ConfigDict:
    config = luna_candidates.get_config()
    config.dataset.name = "lidc_malignancy_slices_64x64"
    config.dataset.folds = 5
    config.crop.size = 0
    config.augment.pad_and_crop = 4
    config.train.duration = "8 epochs"
    config.train.batch_size = 64
    return config
