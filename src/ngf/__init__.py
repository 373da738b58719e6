"""Remove backdoors from image classifiers by natural gradient fine-tuning (arXiv 2306.17441)."""

__version__ = "0.1.0"
