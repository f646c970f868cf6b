"""Parts of the experiment on identified models."""
