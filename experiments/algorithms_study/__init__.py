"""Parts of the comparison of algorithms."""
