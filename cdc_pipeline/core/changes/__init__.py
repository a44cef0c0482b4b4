"""Changes: records, their order and fold, and a parser for each way in which they are written."""
