"""The example that comes with the framework: simulated collisions to train on, and a model for them."""
