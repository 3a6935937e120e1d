"""Network compression: weight sharing, bias correction and lossless coding of the result.

The file formats are in `squeeze_jax.pretrained`. The command is `python -m squeeze_jax.compression`.
"""
