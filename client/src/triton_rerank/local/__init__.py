"""One model in this process, from the files that Triton serves: `LocalScorer`."""
