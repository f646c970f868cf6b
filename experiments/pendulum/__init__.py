"""Parts of the pendulum robustness experiment."""
