"""What a process has imported and keeps, each in a child process, for neither can be undone."""

import os
import platform
import subprocess
import sys

import pytest
from conftest import ROOT

from squeeze_jax import memory

# A step with a temporary buffer of 128 MiB, that is 32,768 pages; prints the page faults of the last five.
STEPS = """
import resource
import jax, jax.numpy as jnp

step = jax.jit(lambda x: jax.lax.optimization_barrier(jnp.sin(x)).sum())
x = jnp.ones((32, 2**20))
for i in range(25):  # the heap grows now and then in the first ones
    if i == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def output_of(code: str, tunables: str = "") -> str:
    environment = os.environ | {"GLIBC_TUNABLES": tunables}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_training_keeps_the_memory_of_a_step_for_the_next():
    assert int(output_of("import squeeze_jax.main" + STEPS)) < 2 * 32768
    assert int(output_of("import numpy" + STEPS, memory.environment()["GLIBC_TUNABLES"])) < 2 * 32768
    assert int(output_of("import numpy" + STEPS)) > 4 * 32768  # given back and mapped again


def test_the_readme_names_the_same_tunables():
    (variable,) = memory.environment().items()
    assert f"export {'='.join(variable)}\n" in (ROOT / "README.md").read_text()


def test_the_package_imports_on_demand():
    checks = """
import sys, squeeze_jax
assert not {"jax", "numpy"} & set(sys.modules)
from squeeze_jax import Run, load, models, pretrained
assert squeeze_jax.models is models is sys.modules["squeeze_jax.models"]
assert load is sys.modules["squeeze_jax.loading"].load
assert set(squeeze_jax.__all__) == set(dir(squeeze_jax))
print(hasattr(squeeze_jax, "lod"))
"""
    assert output_of(checks) == "False\n"
