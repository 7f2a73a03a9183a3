"""DRSformer, the sparse Transformer that removes rain from photographs, in JAX and Flax.

Source: "Learning A Sparse Transformer Network for Effective Image Deraining", CVPR 2023. Importing
the package loads none of its parts; they are

- `drsformer_jax.config`: every setting, and the published variants of the network;
- `drsformer_jax.nn`: the network;
- `drsformer_jax.convert`: official PyTorch parameters to ours and back;
- `drsformer_jax.metrics`: PSNR and SSIM in the protocols of published results;
- `drsformer_jax.restore`: a rainy picture in, the picture without rain out;
- `drsformer_jax.data`, `training`, `checkpoint`, `evaluation`: the parts of train.py and eval.py.
"""
