"""Parts of the experiment on what buys robustness."""
