"""Evaluation of models: accuracy, paired drift with intervals, deviations, verdicts, and corruption robustness."""
