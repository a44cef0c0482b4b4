"""A local AWS for newcomers and end-to-end tests: server, its process, and live traffic."""
