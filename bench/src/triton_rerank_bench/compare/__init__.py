"""Ours beside others, in one run: alternating rounds, paired ratios, order checked before speed."""
