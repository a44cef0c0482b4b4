"""How AWS is reached: sessions, credentials, retries, and the clock of its responses."""
