"""Migrations of the service's database, applied when the service starts."""
