"""Parts of the toy tightness experiment."""
