"""Parts of the experiment on certified image classification."""
