"""Landing: from changes that were read to objects and log entries, gaps included."""
