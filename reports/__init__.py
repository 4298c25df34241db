"""From lm-eval result files to tables and statistics."""
