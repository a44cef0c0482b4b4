"""Operations on the whole lake: healing, maintenance, reconciliation, Glue, alarms."""
