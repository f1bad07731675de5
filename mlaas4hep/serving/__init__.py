"""Serving: a repository of models with versions, and predictions with them over HTTP and gRPC."""
