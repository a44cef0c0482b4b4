"""Items: attribute values, their spellings, the columns and masks of them, and kinds of items."""
