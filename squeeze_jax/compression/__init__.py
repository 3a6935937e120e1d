"""Network compression: weight sharing, bias correction and lossless coding of the result.

The file formats are in `squeeze_jax.pretrained`. The command is `python -m squeeze_jax.compression`.
"""

INITIALIZATIONS = ("linear", "density")  # of the k-means of weight sharing
BITS = range(2, 9)  # of a shared weight
BIAS_FORMS = ("float32", "float16", "int8")
NORM_FORMS = ("float32", "float16")  # of the parameters and statistics of batch norm
