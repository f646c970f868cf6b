"""Parts of the study of trained agents under a falling bound."""
