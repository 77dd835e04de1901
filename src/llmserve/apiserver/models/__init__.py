"""The models of an apiserver: what is of one of them alone, and which one a request is for."""
