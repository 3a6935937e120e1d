"""Compares this project's CPU formulations of the layers with the plain lax operations.

    python benchmarks/layers.py --csv benchmarks/results/layers.csv --rounds 15

Each row is one operation, forward and backward, with the sizes of SqueezeNet 1.1 at 224 pixels or of SqueezeNodule-Net
v2 in 3-D at 28^3, in batches of 32 unless the row says otherwise; depthwise, grouped and 2x2 rows have sizes of the
networks that SqueezeNet is compared with. The last rows are whole training steps and inferences. Both formulations are
compiled with the same options and timed alternately in one run. The table has medians over the rounds, with quartiles.
"""

from squeeze_jax.runtime.memory import keep_freed_memory

if __name__ == "__main__":
    keep_freed_memory()  # as squeeze_jax.main does

import functools
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import networks
import numpy as np
import report

from squeeze_jax.models import layers
from squeeze_jax.runtime.devices import compile_often

BATCH = 32


def plain_lax(build: Callable[[], Any]) -> Any:
    """Returns the result of `build` when the layers use the formulation for accelerators."""
    with mock.patch.object(layers, "_by_platform", lambda on_cpu, elsewhere, *arguments: elsewhere(*arguments)):
        return build()


def forward_and_backward(function: Callable, *arguments: jax.Array) -> Callable[[], Any]:
    """Returns a call of the compiled function with the gradients of all arguments."""
    cotangent = jnp.ones(jax.eval_shape(function, *arguments).shape)

    def both(cotangent, *arguments):
        value, pull_back = jax.vjp(function, *arguments)
        return value, pull_back(cotangent)

    compiled = compile_often(both).lower(cotangent, *arguments).compile()
    return lambda: compiled(cotangent, *arguments)


def convolution(
    size: int, channels: int, features: int, kernel: int, rank: int = 2, batch: int = BATCH, groups: int = 1
) -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, *(size,) * rank, channels)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(*(kernel,) * rank, channels // groups, features)), jnp.float32)
    numbers = ("NHWC", "HWIO", "NHWC") if rank == 2 else ("NDHWC", "DHWIO", "NDHWC")

    def convolve(x, weights):
        return layers._convolve(x, weights, (1,) * rank, "SAME", dimension_numbers=numbers, feature_group_count=groups)

    return forward_and_backward(convolve, x, weights)


def max_pooling() -> Callable[[], Any]:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 111, 111, 64)), jnp.float32)
    return forward_and_backward(lambda x: layers.MaxPool().apply({}, x), x)


def compiled_step(case: networks.Case) -> tuple[jax.stages.Compiled, Callable[[], Any]]:
    """Compiles a whole training step, or the inference of a batch; returns it and a call of it."""
    experiment = case.experiment()
    state = jax.jit(experiment.initial_state)(0)
    rng = np.random.default_rng(0)
    if case.training:
        images = rng.integers(0, 256, (case.batch, *case.image), np.uint8)
        labels = np.arange(case.batch, dtype=np.int32) % experiment.task.num_outputs
        function, arguments = experiment.train_step(), (state, {"image": images, "label": labels}, 0)
    else:
        images = jnp.asarray(rng.normal(size=(case.batch, *case.image)), jnp.float32)
        function, arguments = experiment.model.apply, (state.eval_variables(), images)
    compiled = compile_often(function).lower(*arguments).compile()
    return compiled, lambda: compiled(*arguments)


CASES = {
    "convolution 1x1, 128 to 16 channels at 55x55": functools.partial(convolution, 55, 128, 16, 1),
    "convolution 1x1, 16 to 64 channels at 55x55": functools.partial(convolution, 55, 16, 64, 1),
    "convolution 1x1, 384 to 48 channels at 13x13": functools.partial(convolution, 13, 384, 48, 1),
    "convolution 1x1x1, 128 to 32 channels at 6x6x6": functools.partial(convolution, 6, 128, 32, 1, rank=3),
    "convolution 3x3x3, 64 to 128 channels at 6x6x6": functools.partial(convolution, 6, 64, 128, 3, rank=3),
    "convolution 3x3x3, 64 to 128 channels at 6x6x6, one volume": functools.partial(
        convolution, 6, 64, 128, 3, rank=3, batch=1
    ),
    "depthwise convolution 3x3, 144 channels at 56x56": functools.partial(convolution, 56, 144, 144, 3, groups=144),
    "depthwise convolution 5x5, 480 channels at 14x14": functools.partial(convolution, 14, 480, 480, 5, groups=480),
    "convolution 5x5 in 2 groups, 96 to 256 channels at 27x27": functools.partial(
        convolution, 27, 96, 256, 5, groups=2
    ),
    "convolution 3x3 in 2 groups, 16 to 32 channels at 56x56": functools.partial(convolution, 56, 16, 32, 3, groups=2),
    "convolution 3x3, 512 to 512 channels at 2x2": functools.partial(convolution, 2, 512, 512, 3),
    "max pooling 3/2, 64 channels at 111x111": max_pooling,
    **{
        name: lambda name=name: compiled_step(networks.CASES[name])[1]
        for name in (
            "training, v1.1, 32",
            "training, v1.1 with batch norm, 32",
            "training, v1.1, 224",
            "training, nodule v2, 28^3",
            "inference, v1.1, 224, batch 32",
            "inference, nodule v2, 28^3, batch 32",
            "inference, nodule v2, 28^3, batch 1",
        )
    },
}


def measure(programs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each call, alternating between the programs."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for i in range(rounds + 1):
        for name, run in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if i:  # the first round is a warm-up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> int:
    args = report.parser(__doc__).parse_args()
    programs = {name: {"lax": plain_lax(build), "ours": build()} for name, build in CASES.items()}
    rows = []
    for name, pair in programs.items():
        seconds = measure(pair, args.rounds)
        rows += [
            {"operation": name, "formulation": formulation}
            | report.spread([1000 * value for value in values], "milliseconds", 2)
            | {"lax_over_this": report.ratio(seconds["lax"], values)}
            for formulation, values in seconds.items()
        ]
    report.write(args.csv, rows, args.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
