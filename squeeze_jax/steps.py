"""One training step and one evaluation step: pure functions of a state and a batch, the same on every device count."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from squeeze_jax.data.augment import mirror_images, mixup
from squeeze_jax.models.layers import parameter_dtype
from squeeze_jax.models.squeezenet import SqueezeNet
from squeeze_jax.state import TrainState

Batch = dict[str, jax.Array]  # "image" (batch, *spatial, channels), "label" int32 (batch,); "mask" bool in evaluation
Sums = dict[str, jax.Array]
Scores = dict[str, jax.Array]

TOP_K = 5


def make_train_step(
    model: SqueezeNet,
    optimizer: optax.GradientTransformation,
    preprocess: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    micro_batches: int = 1,
    label_smoothing: float = 0.0,
    mixup_alpha: float = 0.0,
    class_weights: tuple[float, ...] = (),
    ema_decay: float = 0.0,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch, jax.Array], TrainState]:
    """Makes `train_step(state, batch, seed) -> state`, one update by the mean gradient of a batch.

    Randomness is keyed by (seed, step, position in the global batch), so it does not depend on the devices. The seed,
    int32 (), is an argument for all seeds of a sweep to share one compiled program.

    Args:
      model: the network.
      optimizer: its optimizer.
      preprocess: maps raw images and one key an example to the network's input.
      micro_batches: parts that the batch is computed in, one after the other; batch norm normalises each by itself.
      label_smoothing: mass spread evenly over all classes.
      mixup_alpha: images and targets are mixed with their neighbours', see `augment.mixup`; 0 for no mixing. The
        reported loss is that of the mixed examples, the accuracies ask for an example's own label.
      class_weights: factors on the loss of each class; empty for none. The reported loss has them.
      ema_decay: of the averaged weights; must be positive if and only if the state has them.
      axis_name: the axis of pmap; None under jit, where the batch is the global one.
    """
    model = model.clone(axis_name=axis_name)

    def across_devices(reduce: Callable, tree):
        return reduce(tree, axis_name) if axis_name else tree

    def loss_fn(params, batch_stats, images, targets, labels, dropout_key, positions):
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            positions=positions,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy(logits, targets)
        return losses.mean(), (updates.get("batch_stats", {}), _example_sums(logits, labels, losses))

    def train_step(state: TrainState, batch: Batch, seed: jax.Array) -> TrainState:
        local = batch["label"].shape[0]
        first = jax.lax.axis_index(axis_name) * local if axis_name else 0
        positions = first + jnp.arange(local)
        augment_key, dropout_key, mixup_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step), 3)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(augment_key, positions)
        # The barrier keeps XLA from computing the augmentation again in every consumer of the images.
        images = jax.lax.optimization_barrier(preprocess(batch["image"], keys))
        dtype = parameter_dtype(model.dtype)
        targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], model.num_classes, dtype=dtype), label_smoothing)
        if mixup_alpha:
            mixup_keys = jax.vmap(jax.random.fold_in, (None, 0))(mixup_key, positions)
            images, targets = mixup(images, targets, mixup_keys, mixup_alpha)
        if class_weights:
            # Cross entropy is linear in the target, so weighting it weights the loss.
            targets = targets * jnp.array(class_weights, dtype)

        batch_stats, gradients, sums = state.batch_stats, None, None
        for part in range(micro_batches):
            # Every micro_batches-th example, so that each part lies evenly on the devices. Unrolled: gradients of
            # convolutions in a rolled loop are many times slower on CPU.
            def take(x, part=part):
                return x.reshape(local // micro_batches, micro_batches, *x.shape[1:])[:, part]

            (_, (batch_stats, part_sums)), part_gradients = jax.value_and_grad(loss_fn, has_aux=True)(
                state.params,
                batch_stats,
                take(images),
                take(targets),
                take(batch["label"]),
                dropout_key,
                take(positions),
            )
            gradients = part_gradients if part == 0 else jax.tree.map(jnp.add, gradients, part_gradients)
            sums = part_sums if part == 0 else jax.tree.map(jnp.add, sums, part_sums)
        gradients = across_devices(jax.lax.pmean, jax.tree.map(lambda g: g / micro_batches, gradients))
        sums = across_devices(jax.lax.psum, sums)

        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            # The warm-up lets the average forget the initial weights.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            new = {"params": params, "batch_stats": batch_stats}
            ema = jax.tree.map(lambda old, value: (decay * old + (1 - decay) * value).astype(old.dtype), ema, new)
        norms = {
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
        return state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
            window=jax.tree.map(jnp.add, state.window, {"steps": jnp.ones((), jnp.int32), **sums, **norms}),
        )

    return train_step


def make_eval_step(
    model: SqueezeNet,
    preprocess: Callable[[jax.Array], jax.Array],
    *,
    confusion: bool = False,
    scores: bool = False,
    mirror: tuple[str, ...] = (),
    axis_name: str | None = None,
) -> Callable[[dict, Batch], tuple[Sums, Scores]]:
    """Makes `eval_step(variables, batch) -> (sums, scores)` over the examples whose mask is true.

    The sums are "examples", "loss", "top1", "top5", and with `confusion` the counts "confusion", int32
    (label, prediction). Each example counts once: padding has a false mask. With `scores` the second result holds the
    whole batch's "probability" (batch, num_classes), "label" and "mask", for metrics that are no sums, such as AUC.
    The logits are the mean over an image and its mirror images along the axes `mirror`, see `augment.mirror_images`.
    """

    def eval_step(variables: dict, batch: Batch) -> tuple[Sums, Scores]:
        views = mirror_images(preprocess(batch["image"]), mirror)
        logits = sum(model.apply(variables, view) for view in views) / len(views)
        labels, mask = batch["label"], batch["mask"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        sums = _example_sums(logits, labels, losses, mask)
        if confusion:
            num_classes = logits.shape[-1]
            counts = jnp.zeros((num_classes, num_classes), jnp.int32)
            sums["confusion"] = counts.at[labels, jnp.argmax(logits, -1)].add(mask.astype(jnp.int32))
        whole = {"probability": jax.nn.softmax(logits), "label": labels, "mask": mask} if scores else {}
        if axis_name:
            sums = jax.lax.psum(sums, axis_name)
            whole = jax.lax.all_gather(whole, axis_name, tiled=True)
        return sums, whole

    return eval_step


def _example_sums(logits: jax.Array, labels: jax.Array, losses: jax.Array, mask: jax.Array | None = None) -> Sums:
    """Sums over examples. Ties in the logits go to the lower class, so that equal logits are no hit for everyone."""
    mask = jnp.ones(labels.shape, bool) if mask is None else mask
    _, best = jax.lax.top_k(logits, min(TOP_K, logits.shape[-1]))
    hits = (best == labels[:, None]) & mask[:, None]
    return {
        "examples": jnp.sum(mask, dtype=jnp.int32),
        "loss": jnp.sum(jnp.where(mask, losses, 0)),
        "top1": jnp.sum(hits[:, 0], dtype=jnp.int32),
        "top5": jnp.sum(hits, dtype=jnp.int32),
    }
