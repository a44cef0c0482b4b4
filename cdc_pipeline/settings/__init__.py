"""Settings: their model, and edits of the file that keep its comments."""
