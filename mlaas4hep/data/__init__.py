"""The data path: sources (what to read), schema (which columns), ingest (one pass to a store), batches (gather)."""
