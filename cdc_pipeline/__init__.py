"""Keeps a provably complete analytical copy of DynamoDB tables in a data lake."""
