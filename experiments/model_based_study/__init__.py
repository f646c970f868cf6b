"""Parts of the experiment on policies trained on a learned model."""
