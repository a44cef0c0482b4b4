"""Settings: their model, the loader of the file, and edits of the file that keep its comments."""
