"""The assets of tables, their checks, and the sensors and schedules that start them."""
