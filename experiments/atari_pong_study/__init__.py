"""Parts of the experiment on policies of images."""
