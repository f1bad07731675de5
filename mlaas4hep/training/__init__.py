"""Training: the workflow a user hands over, the experiment, one adapter a framework, metrics, and the bundle."""
