"""Who is asked when the first choice fails: `FallbackScorer` and `FirstStageOrder`."""
