"""TOSCA templates for INDIGO's PaaS orchestrator, and the forms of its dashboard, from the same spec as a creation."""
