"""A task of a user's own in one file with its config: the mean brightness of an image, learned as a regression."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from squeeze_jax import config, tables, tasks
from squeeze_jax.data.augmentation import Preprocessing
from squeeze_jax.drawing import draw_sheet


@dataclasses.dataclass(frozen=True)
class Brightness:
    preprocessing: Preprocessing
    scale: float
    OPTIONS: ClassVar = {"scale": 1.0}
    num_outputs, higher_is_better, naming, chance_loss, fits_on_validation = 1, {"loss": False}, {}, None, False

    @classmethod
    def create(cls, options, class_names, preprocessing, train_split=None):
        return cls(preprocessing, options["scale"])

    def check_split(self, split, group_names):
        pass

    def check_network(self, model):
        pass

    def target(self, images):
        return self.scale * jnp.mean(jnp.asarray(images, float), (1, 2, 3)) / 255

    def augment(self, batch, keys):
        return {"image": self.preprocessing.augment(batch["image"], keys), "target": self.target(batch["image"])}

    def forward(self, apply, batch):
        return apply(self.preprocessing.evaluate(batch["image"]))

    def loss(self, outputs, batch):
        return (outputs[:, 0] - (batch["target"] if "target" in batch else self.target(batch["image"]))) ** 2

    def sums(self, outputs, batch):
        valid = batch.get("valid", jnp.ones(len(outputs), bool))
        return {"examples": valid.sum(), "loss": jnp.where(valid, self.loss(outputs, batch), 0).sum()}

    def records(self, outputs, batch):
        return {"brightness": outputs[:, 0]}

    def values(self, sums, records):
        return {"loss": float(sums["loss"]) / int(sums["examples"])}

    def predict(self, outputs):
        return outputs[:, 0]

    def score(self, predicted):
        return float(predicted)

    def describe(self, predicted, top=5):
        return {"brightness": [{"value": float(predicted)}]}

    def line(self, row):
        return f"brightness {row['value']:.3f}"

    def report(self, folder, sums, records):
        tables.write_csv(folder / "brightness.csv", [{"value": float(value)} for value in records["brightness"]])

    def draw(self, path, batch):
        draw_sheet(path, batch["image"], [f"{value:.2f}" for value in self.target(batch["image"])])


tasks.register("brightness", Brightness)


def get_config():
    made = config.base_config("brightness")
    made.evaluation.best_metric = "loss"
    made.optimizer.learning_rate = 0.01
    return made
