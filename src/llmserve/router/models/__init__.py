"""The models that the cluster is to have."""
