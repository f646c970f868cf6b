"""Parts of the experiment on certified decisions."""
