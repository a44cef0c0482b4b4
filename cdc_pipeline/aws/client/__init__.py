"""Access to AWS: sessions, credentials, retries, checks of answers, and the clock offset."""
