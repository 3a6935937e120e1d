"""Smaller networks: weights that share values, and the coders that make small files of them.

`squeeze_jax.pretrained` reads and writes the files; the command is `python -m squeeze_jax.compression`.
"""
