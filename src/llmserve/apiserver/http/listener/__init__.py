"""The port of the HTTP API: its sockets, its certificate, and the web server on it."""
