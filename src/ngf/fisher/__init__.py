"""The mathematics of NGF: Fisher matrices of the tuned parameters and steps that use them."""
