"""The service's web pages: they show what the API's routes answer, and hold no rule of their own."""
