"""A local AWS for newcomers and end-to-end tests: server, process, live traffic."""
