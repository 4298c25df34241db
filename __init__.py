"""t2: Transformer² (arXiv 2501.06252) inside lm-evaluation-harness."""

__version__ = "0.1.0"
