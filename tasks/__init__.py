"""lm-eval tasks, their prompts, data loading, answer checking and rewards."""
