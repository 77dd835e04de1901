"""How much one request and one connection may ask for (`security.limits`): of fields here, of connections
there."""
