"""The models that callers may ask for, the scorers behind them, and how one is asked."""
