"""The regression gate: `t2 regress` compares a run with a baseline, document by document."""
