"""Public traces of requests to language models, as requests with times and sizes."""
