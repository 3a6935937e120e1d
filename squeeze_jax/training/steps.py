"""The training step and the evaluation step: pure functions of a state and a batch, for any number of devices."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from squeeze_jax.data.splits import VALID
from squeeze_jax.tasks import Task
from squeeze_jax.tasks.task import Batch, Records, Sums
from squeeze_jax.training.pruning import PruningState
from squeeze_jax.training.quantization import quantized_inputs, quantized_kernels
from squeeze_jax.training.state import NORMS, TrainState
from squeeze_jax.training.weight_sharing import SharingState


def make_train_step(
    model: nn.Module,
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    ema_decay: float = 0.0,
    quantization_aware: bool = False,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch, jax.Array], TrainState]:
    """Makes `train_step(state, batch, seed) -> state`, one update with the mean gradient of a batch.

    Randomness is keyed by (seed, step, position in the global batch), so it does not depend on the devices. The seed,
    int32 (), is an argument so that all seeds of a sweep share one compiled program.

    Args:
      model: the network.
      task: the task, which provides augmentation, loss and metrics.
      optimizer: its optimizer.
      micro_batches: the number of parts that the batch is split into; they are computed one after the other, and batch
        norm normalizes each separately.
      ema_decay: the decay of the averaged weights; must be positive if and only if the state has them.
      quantization_aware: whether to simulate int8 kernels and convolution inputs, see `quantization`.
      axis_name: the axis of pmap; None under jit, where the step sees the global batch.
    """
    model = model.clone(axis_name=axis_name)

    def across_devices(reduce: Callable, tree):
        return reduce(tree, axis_name) if axis_name else tree

    def loss_fn(params, batch_stats, images, targets, dropout_key, positions):
        if quantization_aware:
            params = quantized_kernels(params)
        with quantized_inputs(axis_name) if quantization_aware else contextlib.nullcontext():
            outputs, updates = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                positions=positions,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
        losses = task.loss(outputs, targets)
        return losses.mean(), (updates.get("batch_stats", {}), task.sums(outputs, targets))

    def train_step(state: TrainState, batch: Batch, seed: jax.Array) -> TrainState:
        local = len(batch["image"])
        first = jax.lax.axis_index(axis_name) * local if axis_name else 0
        positions = first + jnp.arange(local)
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        batch = task.augment(batch, jax.vmap(jax.random.fold_in, (None, 0))(augment_key, positions))
        # The barrier keeps XLA from recomputing the augmentation in every consumer of the images.
        images = jax.lax.optimization_barrier(task.preprocessing.normalize(batch["image"]))
        targets = {name: value for name, value in batch.items() if name != "image"}

        batch_stats, gradients, sums = state.batch_stats, None, None
        for part in range(micro_batches):
            # Takes every micro_batches-th example, so that each part is distributed evenly over the devices. The loop
            # is unrolled, because gradients of convolutions in a rolled loop are many times slower on CPU.
            def take(x, part=part):
                return x.reshape(local // micro_batches, micro_batches, *x.shape[1:])[:, part]

            (_, (batch_stats, part_sums)), part_gradients = jax.value_and_grad(loss_fn, has_aux=True)(
                state.params,
                batch_stats,
                take(images),
                jax.tree.map(take, targets),
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
            # The decay is warmed up so that the average forgets the initial weights.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            new = {"params": params, "batch_stats": batch_stats}
            ema = jax.tree.map(lambda old, value: (decay * old + (1 - decay) * value).astype(old.dtype), ema, new)
            if isinstance(opt_state, PruningState | SharingState):
                ema = ema | {"params": opt_state.project(ema["params"])}
        norms = dict(zip(NORMS, map(optax.tree.norm, (gradients, params, updates)), strict=True))
        window = {"steps": jnp.ones((), jnp.int32), "sums": sums, "norms": norms}
        return state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
            window=jax.tree.map(jnp.add, state.window, window),
        )

    return train_step


def make_eval_step(
    model: nn.Module, task: Task, *, axis_name: str | None = None
) -> Callable[[dict, Batch], tuple[Sums, Records]]:
    """Makes `eval_step(variables, batch) -> (sums, records)`.

    The sums are over the examples whose "valid" is True. It is False for padding, so each example counts once. The
    records are those of the whole batch, including "valid".

    Args:
      model: the network.
      task: its task.
      axis_name: the axis of pmap; None under jit.
    """

    def eval_step(variables: dict, batch: Batch) -> tuple[Sums, Records]:
        outputs = task.forward(lambda images: model.apply(variables, images), batch)
        sums, records = task.sums(outputs, batch), task.records(outputs, batch) | {VALID: batch[VALID]}
        if axis_name:
            sums = jax.lax.psum(sums, axis_name)
            records = jax.lax.all_gather(records, axis_name, tiled=True)
        return sums, records

    return eval_step
