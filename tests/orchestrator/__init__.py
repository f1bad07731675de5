"""A stand-in for INDIGO's PaaS orchestrator."""
