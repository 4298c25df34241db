"""Few-shot adaptation on the documents of an lm-eval task (the paper's strategy C): draw, evaluate, search, write a mixture file."""
