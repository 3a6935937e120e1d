"""Where a training step spends its time: every layer alone, forward and backward, as ours and as plain lax.

    python benchmarks/layer_profile.py --csv benchmarks/results/layer_profile.csv \
        --case 'training, v1.1 with batch norm, 32'

The cases are those of benchmarks/networks.py. Each layer is compiled for the input that it gets in the network, and all
of them are timed in turns. `backward` is forward and backward less forward. The share is of the sum over the layers,
which a whole step may undercut, for XLA fuses across layers, or exceed, by loss, optimizer and augmentation.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import report
from flax import linen as nn
from layers import measure, plain_lax
from networks import CASES, Case


def layers_of(case: Case) -> list[tuple[str, nn.Module, tuple[int, ...], dict[str, Any]]]:
    """Name, module, input shape and options of the layers of a network in training, in the order of computation."""
    found = []

    def record(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        is_layer = context.method_name == "__call__" and context.module.scope and len(context.module.path) == 1
        if is_layer:
            options = {key: value for key, value in kwargs.items() if key != "positions"}
            found.append((context.module.name, context.module.clone(parent=None), args[0].shape, options))
        return call(*args, **kwargs)

    def run() -> Any:
        images = jnp.zeros((case.batch, *case.image))
        keys = {name: jax.random.key(0) for name in ("params", "dropout")}
        return case.network().init(keys, images, train=True)

    with nn.intercept_methods(record):
        jax.eval_shape(run)
    return found


def programs(module: nn.Module, shape: tuple[int, ...], options: dict[str, Any], is_first: bool) -> list[Callable]:
    """Forward alone, and forward with backward, compiled; the images need no gradient."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    variables = jax.jit(lambda: module.init(keys, x, **options))()
    params = variables.get("params", {})
    rest = {name: value for name, value in variables.items() if name != "params"}

    def forward(params, x):
        return module.apply({"params": params, **rest}, x, **options, rngs=keys, mutable=["batch_stats"])[0]

    def both(params, x):
        if is_first:
            value, pull_back = jax.vjp(lambda params: forward(params, x), params)
        else:
            value, pull_back = jax.vjp(forward, params, x)
        return value, pull_back(jnp.ones_like(value))

    compiled = [jax.jit(function).lower(params, x).compile() for function in (forward, both)]
    return [lambda call=call: call(params, x) for call in compiled]


def main() -> int:
    parser = report.parser(__doc__)
    parser.add_argument("--case", choices=[name for name, case in CASES.items() if case.training], required=True)
    args = parser.parse_args()
    rows = []
    for i, (name, module, shape, options) in enumerate(layers_of(CASES[args.case])):

        def build(module=module, shape=shape, options=options, is_first=i == 0) -> list[Callable]:
            return programs(module, shape, options, is_first)

        calls = dict(zip(("forward", "both"), build(), strict=True))
        calls |= dict(zip(("lax forward", "lax both"), plain_lax(build), strict=True))
        seconds = measure(calls, args.rounds)
        forward, both, lax = (1000 * statistics.median(seconds[key]) for key in ("forward", "both", "lax both"))
        rows.append(
            {
                "case": args.case,
                "layer": name,
                "input": "x".join(map(str, shape)),
                "forward_milliseconds": round(forward, 2),
                "backward_milliseconds": round(both - forward, 2),
                "lax_over_ours": round(lax / both, 2),
            }
        )
    total = sum(row["forward_milliseconds"] + row["backward_milliseconds"] for row in rows)
    for row in rows:
        row["share"] = round((row["forward_milliseconds"] + row["backward_milliseconds"]) / total, 3)
    report.write(args.csv, rows, args.rounds, key="case")
    return 0


if __name__ == "__main__":
    sys.exit(main())
