"""Jobs on a platform: trainings that run apart from whoever asked for them."""
